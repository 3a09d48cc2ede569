//! A chain behind a node's JSON-RPC, with a relayer that pays the gas.

use std::sync::Mutex;
use std::time::Duration;

use ascribe_ledger::EvmAddress;
use serde_json::{Value, json};

use crate::error::BookError;
use crate::x402::authorization::{Authorization, address_word, keccak, word};
use crate::x402::chain::{Chain, Receipt};
use crate::x402::transaction::{LegacyTransaction, call, transfer_call};

/// How long a node may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(15);
/// Longest answer that is read.
const ANSWER_MAX_BYTES: u64 = 4 << 20;

/// Blocks in which a used authorisation is looked for: nodes refuse to search more.
const LOOK_BACK_BLOCKS: u128 = 9_000;

/// Signs a 32-byte digest: r ‖ s ‖ v.
pub type SignDigest = Box<dyn Fn(&[u8; 32]) -> Result<[u8; 65], String> + Send>;

/// Who pays the gas. Its key stays with whoever gave the closure.
pub struct Relayer {
    /// Its address.
    pub address: EvmAddress,
    /// Signs for it.
    pub sign: SignDigest,
}

/// A node of a chain.
pub struct Node {
    agent: ureq::Agent,
    url: String,
    chain_id: u64,
    /// One transaction at a time: two with one nonce would replace each other.
    relayer: Mutex<Relayer>,
}

impl Node {
    /// Connects and asks which chain it is.
    ///
    /// # Errors
    /// [`BookError::Chain`] when the node does not answer or is of another chain.
    pub fn connect(url: &str, chain_id: u64, relayer: Relayer) -> Result<Self, BookError> {
        let agent = ureq::Agent::config_builder().timeout_global(Some(ANSWER_WAIT)).build().new_agent();
        let node = Self { agent, url: url.to_owned(), chain_id, relayer: Mutex::new(relayer) };
        let found = integer(&node.ask("eth_chainId", json!([]))?)?;
        if found != u128::from(chain_id) {
            return Err(BookError::Chain(format!("expected chain {chain_id}, found {found}")));
        }
        Ok(node)
    }

    fn ask(&self, method: &str, params: Value) -> Result<Value, BookError> {
        let refuse = |why: String| BookError::Chain(format!("{method}: {why}"));
        let question = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let mut response = self.agent.post(&self.url).send_json(&question).map_err(|e| refuse(e.to_string()))?;
        let answer = response.body_mut().with_config().limit(ANSWER_MAX_BYTES).read_json::<Value>();
        let mut answer = answer.map_err(|e| refuse(e.to_string()))?;
        if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
            return Err(refuse(error.get("message").and_then(Value::as_str).unwrap_or("refused").to_owned()));
        }
        Ok(answer.get_mut("result").map(Value::take).unwrap_or_default())
    }

    fn view(&self, to: EvmAddress, data: &[u8]) -> Result<u128, BookError> {
        let call = json!([{"to": to.to_string(), "data": format!("0x{}", hex::encode(data))}, "latest"]);
        let answer = self.ask("eth_call", call)?;
        let bytes = bytes(&answer)?;
        let found: Option<[u8; 32]> = bytes.get(..32).and_then(|word| word.try_into().ok());
        let found =
            found.ok_or_else(|| BookError::Chain(format!("{to} answers no word; is it a token of this chain?")))?;
        // What is above 128 bits is more than any price.
        Ok(if found[..16] == [0; 16] {
            u128::from_be_bytes(found[16..].try_into().unwrap_or_default())
        } else {
            u128::MAX
        })
    }
}

fn integer(value: &Value) -> Result<u128, BookError> {
    let text = value.as_str().and_then(|text| text.strip_prefix("0x"));
    let number = text.and_then(|digits| u128::from_str_radix(digits, 16).ok());
    number.ok_or_else(|| BookError::Chain(format!("expected a number in hex, found {value}")))
}

fn bytes(value: &Value) -> Result<Vec<u8>, BookError> {
    let text = value.as_str().and_then(|text| text.strip_prefix("0x"));
    let bytes = text.and_then(|digits| hex::decode(digits).ok());
    bytes.ok_or_else(|| BookError::Chain(format!("expected bytes in hex, found {value}")))
}

impl Chain for Node {
    fn is_used(&self, token: EvmAddress, payer: EvmAddress, nonce: &[u8; 32]) -> Result<bool, BookError> {
        Ok(self.view(token, &call("authorizationState(address,bytes32)", &[address_word(payer), *nonce]))? != 0)
    }

    fn balance(&self, token: EvmAddress, holder: EvmAddress) -> Result<u128, BookError> {
        self.view(token, &call("balanceOf(address)", &[address_word(holder)]))
    }

    fn send(&self, token: EvmAddress, what: &Authorization, signature: &[u8; 65]) -> Result<String, BookError> {
        let data = transfer_call(what, signature);
        // What a panicking thread left is still a relayer.
        let relayer = self.relayer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let from = relayer.address.to_string();
        let estimate = json!([{"from": from, "to": token.to_string(), "data": format!("0x{}", hex::encode(&data))}]);
        // Fails when the token would refuse: nothing is sent then.
        let gas = integer(&self.ask("eth_estimateGas", estimate)?)?;
        let nonce = integer(&self.ask("eth_getTransactionCount", json!([from, "pending"]))?)?;
        let price = integer(&self.ask("eth_gasPrice", json!([]))?)?;
        let small = |value: u128| u64::try_from(value).map_err(|_| BookError::Chain(format!("{value} is too large")));
        let tx = LegacyTransaction {
            nonce: small(nonce)?,
            // A quarter more than the price of the last block, so that the next one still takes it.
            gas_price: price.saturating_add(price / 4),
            gas_limit: small(gas.saturating_add(gas / 4))?,
            to: token,
            data,
            chain_id: self.chain_id,
        };
        let signed = tx.signed(&(relayer.sign)(&tx.digest()).map_err(BookError::Chain)?);
        let hash = self.ask("eth_sendRawTransaction", json!([format!("0x{}", hex::encode(signed))]))?;
        hash.as_str().map(str::to_owned).ok_or_else(|| BookError::Chain("the node gave no hash".into()))
    }

    fn find(&self, token: EvmAddress, what: &Authorization) -> Result<Option<String>, BookError> {
        if !self.is_used(token, what.from, &what.nonce)? {
            return Ok(None);
        }
        let last = integer(&self.ask("eth_blockNumber", json!([]))?)?;
        let used = [keccak(&[b"AuthorizationUsed(address,bytes32)"]), address_word(what.from), what.nonce];
        let topics: Vec<String> = used.iter().map(|topic| format!("0x{}", hex::encode(topic))).collect();
        let from = format!("0x{:x}", last.saturating_sub(LOOK_BACK_BLOCKS));
        let filter = json!([{"address": token.to_string(), "fromBlock": from, "toBlock": "latest", "topics": topics}]);
        let logs = self.ask("eth_getLogs", filter)?;
        let hash = logs.as_array().and_then(|logs| logs.first()?.get("transactionHash")?.as_str());
        Ok(hash.map(str::to_owned))
    }

    fn receipt(
        &self,
        token: EvmAddress,
        what: &Authorization,
        transaction: &str,
    ) -> Result<Option<Receipt>, BookError> {
        let found = self.ask("eth_getTransactionReceipt", json!([transaction]))?;
        let Some(block) = found.get("blockNumber").filter(|block| !block.is_null()) else { return Ok(None) };
        let (block, last) = (integer(block)?, integer(&self.ask("eth_blockNumber", json!([]))?)?);
        let confirmations = last.saturating_sub(block).saturating_add(1);
        let success = found.get("status").map(integer).transpose()? == Some(1);
        let topics = [keccak(&[b"Transfer(address,address,uint256)"]), address_word(what.from), address_word(what.to)];
        let topics: Vec<Value> = topics.iter().map(|topic| format!("0x{}", hex::encode(topic)).into()).collect();
        let amount = format!("0x{}", hex::encode(word(what.value)));
        let lower = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
        let is_ours = |log: &Value| {
            lower(log.get("address")) == token.to_string().to_ascii_lowercase()
                && log.get("topics").and_then(Value::as_array) == Some(&topics)
                && lower(log.get("data")) == amount
        };
        let moved = found.get("logs").and_then(Value::as_array).is_some_and(|logs| logs.iter().any(is_ours));
        Ok(Some(Receipt { success, confirmations: u64::try_from(confirmations).unwrap_or(u64::MAX), moved }))
    }
}
