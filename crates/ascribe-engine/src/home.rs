//! Where Ascribe's folders are: `datasets/` and `models/` under one root.

use std::path::{Path, PathBuf};

use crate::error::EngineError;

/// The root folder and the two below it.
#[derive(Clone, Debug)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The given folder, or the nearest folder at or above the current one that holds both `datasets/` and `models/`.
    ///
    /// # Errors
    /// [`EngineError::NoHome`] with where it looked.
    pub fn find(given: Option<&Path>) -> Result<Self, EngineError> {
        let start = match given {
            Some(dir) => return Self::at(dir),
            None => std::env::current_dir().map_err(|e| EngineError::io(".", e))?,
        };
        start
            .ancestors()
            .find_map(|dir| Self::at(dir).ok())
            .ok_or_else(|| EngineError::NoHome { looked: start.clone() })
    }

    fn at(dir: &Path) -> Result<Self, EngineError> {
        let home = Self { root: dir.to_path_buf() };
        if home.datasets().is_dir() && home.root.join("models").is_dir() {
            Ok(home)
        } else {
            Err(EngineError::NoHome { looked: dir.to_path_buf() })
        }
    }

    /// Registered datasets.
    pub fn datasets(&self) -> PathBuf {
        self.root.join("datasets")
    }

    /// A model folder by name.
    pub fn model(&self, name: &str) -> PathBuf {
        self.root.join("models").join(name)
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_datasets_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Home::find(Some(dir.path())).unwrap_err().to_string();
        assert!(error.contains("datasets"), "{error}");
    }
}
