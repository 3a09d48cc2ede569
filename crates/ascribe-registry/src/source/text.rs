//! Plain text: a file is a record, its path below the folder is the id.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::{Batch, RecordSource, compressed};
use crate::content::LINE_CAP_BYTES;
use crate::error::RegistryError;

pub(super) struct Text {
    id: String,
    path: PathBuf,
    done: bool,
}

impl Text {
    pub(super) fn open(root: &Path, path: &Path) -> Self {
        let below = path.strip_prefix(root).ok().filter(|below| !below.as_os_str().is_empty());
        let named = below.unwrap_or_else(|| Path::new(path.file_name().unwrap_or_default()));
        let parts: Vec<String> = named.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        Self { id: parts.join("/"), path: path.to_owned(), done: false }
    }
}

impl RecordSource for Text {
    fn next_batch(&mut self) -> Result<Option<Batch>, RegistryError> {
        if std::mem::replace(&mut self.done, true) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        compressed::open(&self.path)?
            .take(LINE_CAP_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(RegistryError::io(&self.path, "reading"))?;
        if bytes.len() as u64 > LINE_CAP_BYTES {
            let reason = format!(
                "expected a text of at most {LINE_CAP_BYTES} bytes, found a longer one (hint: split it into chapters or pages)"
            );
            return Err(RegistryError::BadSource { path: self.path.clone(), reason });
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let offset = error.utf8_error().valid_up_to();
            let byte = error.as_bytes()[offset];
            let line = 1 + memchr::memchr_iter(b'\n', &error.as_bytes()[..offset]).count() as u64;
            RegistryError::NotUtf8 { path: self.path.clone(), line, offset, byte }
        })?;
        let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
        Ok(Some(Batch::Pairs { first_row: 1, pairs: vec![(Some(self.id.clone()), Some(text))] }))
    }
}
