//! Names and widths of tiles (C2SP tlog-tiles): which file holds which hash. Arithmetic only, no files.

/// Levels of the tree within one tile.
pub const TILE_HEIGHT: u8 = 8;

/// Hashes of a full tile, entries of a full bundle.
pub const TILE_WIDTH: u64 = 1 << TILE_HEIGHT;

/// Bytes of a hash.
pub(crate) const HASH_LEN_BYTES: usize = 32;

/// Tiles of hashes have a level; bundles of entries lie beside level 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Row {
    Entries,
    Level(u8),
}

/// One tile or bundle of a tree: `width` is below 256 for the rightmost of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TileId {
    pub row: Row,
    pub index: u64,
    pub width: u64,
}

impl TileId {
    /// Path within the log's folder: `tile/0/x001/234` or `tile/0/x001/234.p/56`.
    pub(crate) fn path(self) -> String {
        let row = match self.row {
            Row::Entries => "entries".to_owned(),
            Row::Level(level) => level.to_string(),
        };
        let mut parts = vec![format!("{:03}", self.index % 1000)];
        let mut rest = self.index / 1000;
        while rest > 0 {
            parts.push(format!("x{:03}", rest % 1000));
            rest /= 1000;
        }
        parts.reverse();
        let partial = if self.width < TILE_WIDTH { format!(".p/{}", self.width) } else { String::new() };
        format!("tile/{row}/{}{partial}", parts.join("/"))
    }

    /// The full tile that this one is a beginning of.
    pub(crate) fn full(self) -> Self {
        Self { width: TILE_WIDTH, ..self }
    }
}

/// Hashes that a tree of `size` leaves has at a tile level: `⌊size / 256^level⌋`.
pub(crate) fn row_len(size: u64, row: Row) -> u64 {
    match row {
        Row::Entries | Row::Level(0) => size,
        Row::Level(level) => size.checked_shr(u32::from(TILE_HEIGHT) * u32::from(level)).unwrap_or(0),
    }
}

/// The tile at `index` of a row in a tree of `size` leaves; `None` where there is none.
pub(crate) fn tile_at(size: u64, row: Row, index: u64) -> Option<TileId> {
    let start = index.checked_mul(TILE_WIDTH)?;
    let width = row_len(size, row).checked_sub(start).filter(|left| *left > 0)?.min(TILE_WIDTH);
    Some(TileId { row, index, width })
}

/// Levels of tiles that a tree of `size` leaves has.
pub(crate) fn n_levels(size: u64) -> u8 {
    (0..8).take_while(|level| row_len(size, Row::Level(*level)) > 0).count() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        let id = |row, index, width| TileId { row, index, width }.path();
        assert_eq!(id(Row::Level(0), 1_234_067, 256), "tile/0/x001/x234/067");
        assert_eq!(id(Row::Level(1), 0, 17), "tile/1/000.p/17");
        assert_eq!(id(Row::Entries, 273, 112), "tile/entries/273.p/112");
    }

    /// The specification's own example of 70,000 leaves, and 256.
    #[test]
    fn widths_are_those_of_the_specification() {
        let width = |size, level, index| tile_at(size, Row::Level(level), index).map(|tile| tile.width);
        assert_eq!((width(70_000, 0, 272), width(70_000, 0, 273), width(70_000, 0, 274)), (Some(256), Some(112), None));
        assert_eq!((width(70_000, 1, 0), width(70_000, 1, 1)), (Some(256), Some(17)));
        assert_eq!((width(70_000, 2, 0), n_levels(70_000)), (Some(1), 3));
        assert_eq!((width(256, 0, 0), width(256, 1, 0), n_levels(256)), (Some(256), Some(1), 2));
        assert_eq!((width(0, 0, 0), n_levels(0)), (None, 0));
        assert_eq!(n_levels(u64::MAX), 8);
        assert_eq!(width(u64::MAX, 0, u64::MAX), None);
    }
}
