//! Version 3 keystore files: a secret under a passphrase, as Ethereum's wallets write it.
//!
//! `dk = scrypt | PBKDF2-HMAC-SHA256 (passphrase)`, `secret = AES-128-CTR(dk[0..16], iv, ciphertext)`,
//! `mac = keccak256(dk[16..32] ‖ ciphertext)` (Web3 Secret Storage Definition). An Ed25519 secret is kept the same way; a
//! member `keyType: "ed25519"` says so, which wallets that know only Ethereum's kind ignore.
//!
//! Secrets, derived keys and passphrases are wiped from memory when they are dropped. The cost that a file asks for is
//! capped before it is paid.

use std::fmt;
use std::path::Path;

use aes::Aes128;
use alloy_primitives::keccak256;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit as _, StreamCipher as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::did::DidKey;
use crate::error::RegistryError;
use crate::files;
use crate::key::LicenceKey;
use crate::signer::Signer;

/// The kinds of key that a keystore holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// Ethereum's: signs EIP-712 licences.
    #[default]
    Secp256k1,
    /// `did:key`: signs `eddsa-jcs-2022` licences.
    Ed25519,
}

/// What scrypt costs in a new file: 2¹⁷ × 8 × 128 bytes = 128 MiB, half a second. What geth calls standard is twice that.
const NEW_SCRYPT_LOG_N: u8 = 17;

/// Most memory that a file may ask for.
const SCRYPT_CAP_BYTES: u64 = 1 << 30;

/// Most rounds of PBKDF2 that a file may ask for.
const PBKDF2_ROUNDS_CAP: u32 = 20_000_000;

const DERIVED_LEN: usize = 32;

/// The file. Members that other programs add are ignored.
#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    #[serde(default)]
    id: String,
    /// Lower-case hex without 0x, as wallets write it; for a `did:key` the identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(default, rename = "keyType", skip_serializing_if = "is_default")]
    key_type: KeyKind,
    #[serde(alias = "Crypto")]
    crypto: Crypto,
}

fn is_default(kind: &KeyKind) -> bool {
    *kind == KeyKind::default()
}

#[derive(Serialize, Deserialize)]
struct Crypto {
    cipher: String,
    cipherparams: CipherParams,
    ciphertext: String,
    #[serde(flatten)]
    kdf: Kdf,
    mac: String,
}

#[derive(Serialize, Deserialize)]
struct CipherParams {
    iv: String,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kdf", content = "kdfparams", rename_all = "lowercase")]
enum Kdf {
    Scrypt { n: u64, r: u32, p: u32, dklen: usize, salt: String },
    Pbkdf2 { c: u32, prf: String, dklen: usize, salt: String },
}

/// A signer out of a keystore.
pub struct KeystoreSigner(Box<dyn Signer + Send>);

impl Signer for KeystoreSigner {
    fn licensor(&self) -> String {
        self.0.licensor()
    }

    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, RegistryError> {
        self.0.sign(payload)
    }
}

impl fmt::Debug for KeystoreSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeystoreSigner({})", self.licensor())
    }
}

/// Opens a keystore file with its passphrase.
///
/// Cost: what the file asks for, at most 1 GiB and some seconds.
///
/// # Errors
/// [`RegistryError::Keystore`]: another form, a cost above the caps, a wrong passphrase.
pub fn open(path: &Path, passphrase: &[u8]) -> Result<KeystoreSigner, RegistryError> {
    let file: File = files::parse_json(path, &files::read_small(path, "keystore")?)?;
    let bad = |reason: String| RegistryError::Keystore { path: path.to_owned(), reason };
    if file.version != 3 {
        return Err(bad(format!("version: expected 3, found {}", file.version)));
    }
    if file.crypto.cipher != "aes-128-ctr" {
        return Err(bad(format!("cipher: expected aes-128-ctr, found {:?}", file.crypto.cipher)));
    }
    let derived = derive(&file.crypto.kdf, passphrase).map_err(bad)?;
    let ciphertext: [u8; 32] = unhex("ciphertext", &file.crypto.ciphertext).map_err(bad)?;
    let mac: [u8; 32] = unhex("mac", &file.crypto.mac).map_err(bad)?;
    if mac_of(&derived, &ciphertext) != mac {
        return Err(bad("expected the passphrase that it was written with, found another one".to_owned()));
    }
    let iv: [u8; 16] = unhex("iv", &file.crypto.cipherparams.iv).map_err(bad)?;
    let mut secret = Zeroizing::new(ciphertext);
    apply_cipher(&derived, &iv, &mut secret);
    let signer = of_secret(file.key_type, &secret).map_err(bad)?;
    if let Some(stated) = &file.address {
        let found = stated_address(file.key_type, &signer);
        if !stated.trim_start_matches("0x").eq_ignore_ascii_case(&found) {
            return Err(bad(format!("address: expected {found}, which is what the secret gives, found {stated:?}")));
        }
    }
    Ok(signer)
}

/// Makes a new key and writes its keystore file, which must not be there yet and is readable by its owner alone. Returns
/// its signer.
///
/// # Errors
/// [`RegistryError::Keystore`] for an empty passphrase, [`RegistryError::Io`].
pub fn create(path: &Path, passphrase: &[u8], kind: KeyKind) -> Result<KeystoreSigner, RegistryError> {
    let bad = |reason: String| RegistryError::Keystore { path: path.to_owned(), reason };
    if passphrase.is_empty() {
        return Err(bad("expected a passphrase, found none".to_owned()));
    }
    let mut random = Zeroizing::new([0u8; 32 + 32 + 16 + 16]);
    getrandom::fill(random.as_mut()).map_err(|error| bad(format!("no random numbers: {error}")))?;
    let (secret, rest) = random.split_at(32);
    let (salt, rest) = rest.split_at(32);
    let (iv, id) = rest.split_at(16);
    let secret = Zeroizing::new(<[u8; 32]>::try_from(secret).expect("split at 32"));
    let signer = of_secret(kind, &secret).map_err(bad)?;
    let kdf = Kdf::Scrypt { n: 1 << NEW_SCRYPT_LOG_N, r: 8, p: 1, dklen: DERIVED_LEN, salt: hex::encode(salt) };
    let derived = derive(&kdf, passphrase).map_err(bad)?;
    let mut ciphertext = *secret;
    apply_cipher(&derived, iv.try_into().expect("split at 16"), &mut ciphertext);
    let file = File {
        version: 3,
        id: uuid::Builder::from_random_bytes(id.try_into().expect("16 are left")).into_uuid().to_string(),
        address: Some(stated_address(kind, &signer)),
        key_type: kind,
        crypto: Crypto {
            cipher: "aes-128-ctr".to_owned(),
            cipherparams: CipherParams { iv: hex::encode(iv) },
            ciphertext: hex::encode(ciphertext),
            mac: hex::encode(mac_of(&derived, &ciphertext)),
            kdf,
        },
    };
    write_private(path, &files::to_json(&file))?;
    Ok(signer)
}

fn of_secret(kind: KeyKind, secret: &[u8; 32]) -> Result<KeystoreSigner, String> {
    Ok(KeystoreSigner(match kind {
        KeyKind::Secp256k1 => Box::new(LicenceKey::from_secret(secret)?),
        KeyKind::Ed25519 => Box::new(DidKey::from_secret(secret)),
    }))
}

/// What the member `address` says.
fn stated_address(kind: KeyKind, signer: &KeystoreSigner) -> String {
    let licensor = signer.licensor();
    match kind {
        KeyKind::Secp256k1 => licensor.trim_start_matches("0x").to_ascii_lowercase(),
        KeyKind::Ed25519 => licensor,
    }
}

fn derive(kdf: &Kdf, passphrase: &[u8]) -> Result<Zeroizing<[u8; DERIVED_LEN]>, String> {
    let mut derived = Zeroizing::new([0; DERIVED_LEN]);
    let (Kdf::Scrypt { dklen, salt, .. } | Kdf::Pbkdf2 { dklen, salt, .. }) = kdf;
    if *dklen != DERIVED_LEN {
        return Err(format!("dklen: expected {DERIVED_LEN}, found {dklen}"));
    }
    let salt = hex::decode(salt).map_err(|_| "salt: expected hex digits, found others".to_owned())?;
    match kdf {
        Kdf::Scrypt { n, r, p, .. } => {
            let bytes = n.saturating_mul((*r).into()).saturating_mul(128);
            if !n.is_power_of_two() || bytes > SCRYPT_CAP_BYTES || *p == 0 || *p > 16 {
                return Err(format!(
                    "scrypt: expected n a power of two, 128·n·r at most {SCRYPT_CAP_BYTES} bytes and p at most 16, found n \
                     {n}, r {r}, p {p}"
                ));
            }
            let log_n = n.trailing_zeros() as u8;
            let params = scrypt::Params::new(log_n, *r, *p, DERIVED_LEN).map_err(|error| format!("scrypt: {error}"))?;
            scrypt::scrypt(passphrase, &salt, &params, derived.as_mut()).map_err(|error| format!("scrypt: {error}"))?;
        }
        Kdf::Pbkdf2 { c, prf, .. } => {
            if prf != "hmac-sha256" || *c == 0 || *c > PBKDF2_ROUNDS_CAP {
                return Err(format!(
                    "pbkdf2: expected hmac-sha256 and at most {PBKDF2_ROUNDS_CAP} rounds, found {prf:?} and {c}"
                ));
            }
            pbkdf2::pbkdf2_hmac::<Sha256>(passphrase, &salt, *c, derived.as_mut());
        }
    }
    Ok(derived)
}

fn apply_cipher(derived: &[u8; DERIVED_LEN], iv: &[u8; 16], bytes: &mut [u8; 32]) {
    // Made from a slice, so that no copy of the key is left behind; the cipher wipes its own.
    let cipher = Ctr128BE::<Aes128>::new_from_slices(&derived[..16], iv);
    cipher.expect("16 bytes of key, 16 of counter").apply_keystream(bytes);
}

fn mac_of(derived: &[u8; DERIVED_LEN], ciphertext: &[u8; 32]) -> [u8; 32] {
    let mut input = Zeroizing::new([0; 48]);
    input[..16].copy_from_slice(&derived[16..]);
    input[16..].copy_from_slice(ciphertext);
    keccak256(&input[..]).0
}

fn unhex<const N: usize>(member: &str, digits: &str) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    match hex::decode_to_slice(digits, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(format!("{member}: expected {} hex digits, found others", 2 * N)),
    }
}

/// Writes a file that only its owner can read; one that is there stays.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), RegistryError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let mut file =
        options.write(true).create_new(true).mode(0o600).open(path).map_err(RegistryError::io(path, "creating"))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(RegistryError::io(path, "writing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two test vectors of the Web3 Secret Storage Definition: one secret, both ways.
    const PASSPHRASE: &[u8] = b"testpassword";
    const PBKDF2: &str = r#"{"crypto":{"cipher":"aes-128-ctr","cipherparams":{"iv":"6087dab2f9fdbbfaddc31a909735c1e6"},
        "ciphertext":"5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46","kdf":"pbkdf2",
        "kdfparams":{"c":262144,"dklen":32,"prf":"hmac-sha256",
        "salt":"ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd"},
        "mac":"517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2"},
        "id":"3198bc9c-6672-5ab3-d995-4942343ae5b6","version":3}"#;
    const SCRYPT: &str = r#"{"crypto":{"cipher":"aes-128-ctr","cipherparams":{"iv":"83dbcc02d8ccb40e466191a123791e0e"},
        "ciphertext":"d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c","kdf":"scrypt",
        "kdfparams":{"dklen":32,"n":262144,"p":8,"r":1,
        "salt":"ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19"},
        "mac":"2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097"},
        "id":"3198bc9c-6672-5ab3-d995-4942343ae5b6","version":3}"#;
    /// Address of the secret 7a28b5ba….
    const ADDRESS: &str = "0x008AeEda4D805471dF9b2A5B0f38A0C3bCBA786b";

    fn open_text(text: &str, passphrase: &[u8]) -> Result<String, String> {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("k.json");
        std::fs::write(&path, text).unwrap();
        let shown = |error: RegistryError| error.to_string().rsplit("k.json: ").next().unwrap().to_owned();
        open(&path, passphrase).map(|signer| signer.licensor()).map_err(shown)
    }

    #[test]
    fn the_published_vector_opens() {
        assert_eq!(open_text(PBKDF2, PASSPHRASE).unwrap(), ADDRESS);
        // The other one asks for n = 2^18 with r = 1, which RFC 7914 forbids (n < 2^(16 r)) and no wallet writes. That
        // scrypt is done right is shown by ethers and eth-account (`tests/conformance/registry`).
        let refused = open_text(SCRYPT, PASSPHRASE).unwrap_err();
        assert_eq!(refused, "scrypt: invalid scrypt parameters");
    }

    #[test]
    fn what_does_not_open_says_why() {
        let wrong = open_text(PBKDF2, b"TestPassword").unwrap_err();
        assert_eq!(wrong, "expected the passphrase that it was written with, found another one");
        let cases = [
            ("\"version\":3", "\"version\":4", "version: expected 3, found 4"),
            ("aes-128-ctr", "aes-128-cbc", "cipher: expected aes-128-ctr, found \"aes-128-cbc\""),
            ("262144", "4294967295", "pbkdf2: expected hmac-sha256 and at most 20000000 rounds"),
            ("\"dklen\":32", "\"dklen\":99", "dklen: expected 32, found 99"),
            ("5318b4", "5318b", "ciphertext: expected 64 hex digits, found others"),
            ("5318b4", "5318b5", "expected the passphrase that it was written with"),
            ("pbkdf2", "argon2", "unknown variant"),
        ];
        for (from, to, expected) in cases {
            let found = open_text(&PBKDF2.replace(from, to), PASSPHRASE).unwrap_err();
            assert!(found.starts_with(expected), "expected {expected:?}, found {found:?}");
        }
        // Memory that no honest file asks for.
        let bomb = open_text(&SCRYPT.replace("262144", "1099511627776"), PASSPHRASE).unwrap_err();
        assert!(bomb.starts_with("scrypt: expected n a power of two"), "{bomb}");
        let stated = PBKDF2.replace("\"version\":3", "\"version\":3,\"address\":\"00\"");
        assert!(open_text(&stated, PASSPHRASE).unwrap_err().starts_with("address: expected 008aeeda"));
    }

    #[test]
    fn a_new_key_opens_again_and_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::TempDir::new().unwrap();
        for kind in [KeyKind::Secp256k1, KeyKind::Ed25519] {
            let path = dir.path().join(format!("{kind:?}.json"));
            let made = create(&path, b"a phrase", kind).unwrap();
            assert_eq!(open(&path, b"a phrase").unwrap().licensor(), made.licensor());
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let again = create(&path, b"a phrase", kind).unwrap_err().to_string();
            assert!(again.contains("creating"), "{again}");
        }
        assert!(create(&dir.path().join("e.json"), b"", KeyKind::Ed25519).is_err());
    }
}
