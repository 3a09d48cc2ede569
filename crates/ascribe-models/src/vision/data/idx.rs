//! IDX, the format of the MNIST files: two zero bytes, a type, the number of dimensions, their sizes (big-endian), numbers.
//! Only unsigned bytes (type 8) are read: that is what images and labels are in it.

use super::{Header, Refusal};

/// Reads the header at the start of a file.
pub(super) fn header(head: &[u8]) -> Result<Header, Refusal> {
    let refuse = |expected, found: String| Err((expected, found));
    let [0, 0, kind, n_dims, sizes @ ..] = head else {
        let found = format!("a file that begins with {:02x?}", &head[..head.len().min(6)]);
        return refuse("a .npy or an IDX file", found);
    };
    if *kind != 8 {
        return refuse("IDX of type 8 (unsigned bytes)", format!("type {kind}"));
    }
    let n_dims = usize::from(*n_dims);
    if !(1..=4).contains(&n_dims) || sizes.len() < 4 * n_dims {
        return refuse("IDX of 1 to 4 dimensions with their sizes", format!("{n_dims} dimensions"));
    }
    let size = |b: &[u8]| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize;
    let shape = sizes[..4 * n_dims].chunks_exact(4).map(size).collect();
    Ok(Header { len: 4 + 4 * n_dims, shape, width: 1, decode: super::bytes })
}
