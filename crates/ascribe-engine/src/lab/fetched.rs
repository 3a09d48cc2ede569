//! Records that lie on an object store: brought beside the store that is made of them, once.

use std::path::{Path, PathBuf};

use ascribe_store::StoreError;

use crate::error::EngineError;
use crate::files;

/// The file to read records from: `data` itself, or the copy of `s3://BUCKET/…/FILE` in `<out>.data/FILE`, which is fetched unless one
/// of that length is there. The copy stays for a build that goes on; a store is tied to the hash of the records, so a copy that
/// no longer is the object's is refused by the store and not by this.
///
/// Whole objects are held in memory on their way: at most 2 GiB.
///
/// # Errors
/// Nothing there; the medium's and the file system's.
pub fn local(data: &Path, out: &Path) -> Result<PathBuf, EngineError> {
    let Some((place, name)) =
        data.to_str().filter(|text| ascribe_objects::is_address(text)).and_then(|t| t.rsplit_once('/'))
    else {
        return Ok(data.to_path_buf());
    };
    let lookup = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let objects = ascribe_objects::open(place, &lookup)?;
    let missing = || StoreError::Missing { path: data.to_path_buf(), hint: "the object does not exist" };
    let len_bytes = objects.len(name)?.ok_or_else(missing)?;
    let mut folder = out.file_name().unwrap_or_default().to_os_string();
    folder.push(".data");
    let copy = out.with_file_name(folder).join(name);
    if std::fs::metadata(&copy).is_ok_and(|found| found.len() == len_bytes) {
        return Ok(copy);
    }
    let bytes = objects.get(name)?.ok_or_else(missing)?;
    files::write_atomic(&copy, &bytes)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_itself_and_a_url_without_keys_says_what_is_missing() {
        assert_eq!(local(Path::new("a/b.jsonl"), Path::new("out")).unwrap(), Path::new("a/b.jsonl"));
        let error = local(Path::new("s3://Bad_Bucket/b.jsonl"), Path::new("out")).unwrap_err().to_string();
        assert!(error.contains("bucket"), "{error}");
    }
}
