//! Labelled images (or rows of a table) in memory, and how they are read from `.npy` and IDX files. Files are hostile: sizes
//! are checked against the file's length before anything is allocated.

mod idx;
mod npy;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// Classes beyond this are not labels.
const MAX_CLASS: u64 = 1 << 16;

/// Files beyond this are not read into memory.
const MAX_FILE_BYTES: u64 = 1 << 36;

/// What is done to every pixel: `(x/255 − mean)/std` for bytes, `(x − mean)/std` for floats, per channel.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// One for all channels, or one per channel.
    pub mean: Vec<f32>,
    /// One for all channels, or one per channel; positive.
    pub std: Vec<f32>,
}

impl Default for Normalization {
    fn default() -> Self {
        Self { mean: vec![0.0], std: vec![1.0] }
    }
}

impl Normalization {
    /// Mean and deviation of a channel.
    fn channel(&self, channel: usize) -> (f32, f32) {
        let pick = |numbers: &[f32]| numbers[channel.min(numbers.len() - 1)];
        (pick(&self.mean), pick(&self.std))
    }

    fn check(&self, channels: usize) -> Result<(), ModelError> {
        let fits = |n: usize| n == 1 || n == channels;
        let positive = |x: &f32| x.is_finite() && *x > 0.0;
        if fits(self.mean.len())
            && fits(self.std.len())
            && self.mean.iter().all(|x| x.is_finite())
            && self.std.iter().all(positive)
        {
            return Ok(());
        }
        Err(ModelError::Mismatch {
            what: "normalisation of images",
            expected: format!("1 or {channels} finite means and positive deviations"),
            found: format!("means {:?}, deviations {:?}", self.mean, self.std),
        })
    }
}

#[derive(Clone, Debug)]
enum Pixels {
    /// Bytes, and for every channel what each byte stands for.
    Bytes {
        bytes: Vec<u8>,
        values: Vec<f32>,
    },
    Floats(Vec<f32>),
}

/// Numbers of a file, as they stand there.
pub(super) enum Numbers {
    Bytes(Vec<u8>),
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

/// An array of a file.
pub(super) struct Array {
    pub shape: Vec<usize>,
    pub numbers: Numbers,
}

/// Labelled images of one shape. An image's number is its place in the set.
#[derive(Clone, Debug)]
pub struct ImageSet {
    shape: [usize; 3],
    pixels: Pixels,
    labels: Vec<u32>,
}

impl ImageSet {
    /// Images of floats, `[n, C, H, W]` row-major, with `normalization` applied once.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] if counts differ, [`ModelError::NotFinite`] for a number that is none.
    pub fn from_f32(
        shape: [usize; 3],
        mut images: Vec<f32>,
        labels: Vec<u32>,
        normalization: &Normalization,
    ) -> Result<Self, ModelError> {
        check_counts(shape, images.len(), labels.len())?;
        normalization.check(shape[0])?;
        crate::weights::check_finite(&images, Path::new("<memory>"), "images")?;
        if *normalization != Normalization::default() {
            for (i, plane) in images.chunks_exact_mut(shape[1] * shape[2]).enumerate() {
                let (mean, std) = normalization.channel(i % shape[0]);
                plane.iter_mut().for_each(|x| *x = (*x - mean) / std);
            }
        }
        Ok(Self { shape, pixels: Pixels::Floats(images), labels })
    }

    /// Images of bytes, `[n, C, H, W]` row-major; normalised when they are looked at, so memory is a byte per pixel.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] if counts differ.
    pub fn from_u8(
        shape: [usize; 3],
        bytes: Vec<u8>,
        labels: Vec<u32>,
        normalization: &Normalization,
    ) -> Result<Self, ModelError> {
        check_counts(shape, bytes.len(), labels.len())?;
        normalization.check(shape[0])?;
        let values = (0..shape[0])
            .flat_map(|channel| {
                let (mean, std) = normalization.channel(channel);
                (0..=255u8).map(move |byte| (f32::from(byte) / 255.0 - mean) / std)
            })
            .collect();
        Ok(Self { shape, pixels: Pixels::Bytes { bytes, values }, labels })
    }

    /// Reads images and labels from two files, each `.npy` (C order) or IDX (the format of MNIST), told apart by their first
    /// bytes. Images are u8 or f32 of shape `[n, D]`, `[n, H, W]` or `[n, C, H, W]`; labels are integers `[n]` from 0.
    ///
    /// # Errors
    /// [`ModelError::Io`]; [`ModelError::Format`] naming the file, expected and found; as [`Self::from_f32`].
    pub fn open(images: &Path, labels: &Path, normalization: &Normalization) -> Result<Self, ModelError> {
        let array = read_array(images)?;
        let shape = match array.shape[..] {
            [_, d] => [1, 1, d],
            [_, h, w] => [1, h, w],
            [_, c, h, w] => [c, h, w],
            _ => {
                let expected = "images [n, D], [n, H, W] or [n, C, H, W]".into();
                return Err(ModelError::Format { path: images.into(), expected, found: format!("{:?}", array.shape) });
            }
        };
        let classes = read_labels(labels)?;
        if classes.len() != array.shape[0] {
            let expected = format!("{} labels, one per image of {}", array.shape[0], images.display());
            return Err(ModelError::Format { path: labels.into(), expected, found: classes.len().to_string() });
        }
        match array.numbers {
            Numbers::Bytes(bytes) => Self::from_u8(shape, bytes, classes, normalization),
            Numbers::Floats(floats) => {
                crate::weights::check_finite(&floats, images, "images")?;
                Self::from_f32(shape, floats, classes, normalization)
            }
            Numbers::Integers(_) => Err(ModelError::Format {
                path: images.into(),
                expected: "images of u8 or f32".into(),
                found: "other integers".into(),
            }),
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if there are no images.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Channels, height and width; `[1, 1, D]` for rows of a table.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The classes, one per image.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// One more than the largest label.
    pub fn n_classes(&self) -> usize {
        self.labels.iter().max().map_or(0, |&class| class as usize + 1)
    }

    /// The same images with other labels (label noise, planted errors).
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] if their number differs.
    pub fn with_labels(mut self, labels: Vec<u32>) -> Result<Self, ModelError> {
        if labels.len() != self.len() {
            let (expected, found) = (self.len().to_string(), labels.len().to_string());
            return Err(ModelError::Mismatch { what: "number of labels", expected, found });
        }
        self.labels = labels;
        Ok(self)
    }

    /// The first `n` images; all of them if there are no more.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] for no image.
    pub fn first(mut self, n: usize) -> Result<Self, ModelError> {
        if n == 0 {
            let expected = "at least 1".to_owned();
            return Err(ModelError::Mismatch { what: "number of images", expected, found: "0".into() });
        }
        let len = n.min(self.len()) * self.shape.iter().product::<usize>();
        self.labels.truncate(n);
        match &mut self.pixels {
            Pixels::Floats(floats) => floats.truncate(len),
            Pixels::Bytes { bytes, .. } => bytes.truncate(len),
        }
        Ok(self)
    }

    /// The images at these places, in this order; a place may come several times.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] for no place or one beyond the end.
    pub fn picked(&self, places: &[u32]) -> Result<Self, ModelError> {
        let len: usize = self.shape.iter().product();
        if let Some(found) = places.iter().find(|&&i| i as usize >= self.len()) {
            let (expected, found) = (format!("below {}", self.len()), found.to_string());
            return Err(ModelError::Mismatch { what: "place of an image", expected, found });
        }
        if places.is_empty() {
            let expected = "at least 1".to_owned();
            return Err(ModelError::Mismatch { what: "number of images", expected, found: "0".into() });
        }
        let of = |i: u32| i as usize * len..(i as usize + 1) * len;
        let pixels = match &self.pixels {
            Pixels::Floats(floats) => {
                Pixels::Floats(places.iter().flat_map(|&i| floats[of(i)].iter().copied()).collect())
            }
            Pixels::Bytes { bytes, values } => Pixels::Bytes {
                bytes: places.iter().flat_map(|&i| bytes[of(i)].iter().copied()).collect(),
                values: values.clone(),
            },
        };
        let labels = places.iter().map(|&i| self.labels[i as usize]).collect();
        Ok(Self { shape: self.shape, pixels, labels })
    }

    /// Writes image `i`, normalised, into `out` `[C·H·W]`.
    ///
    /// # Panics
    /// If `i` or the length of `out` does not fit.
    pub fn image_into(&self, i: usize, out: &mut [f32]) {
        let len: usize = self.shape.iter().product();
        assert_eq!(out.len(), len, "an image of another size");
        match &self.pixels {
            Pixels::Floats(floats) => out.copy_from_slice(&floats[i * len..(i + 1) * len]),
            Pixels::Bytes { bytes, values } => {
                let area = self.shape[1] * self.shape[2];
                let planes = bytes[i * len..(i + 1) * len].chunks_exact(area).zip(out.chunks_exact_mut(area));
                for ((bytes, out), values) in planes.zip(values.chunks_exact(256)) {
                    out.iter_mut().zip(bytes).for_each(|(out, &byte)| *out = values[usize::from(byte)]);
                }
            }
        }
    }
}

fn check_counts(shape: [usize; 3], numbers: usize, labels: usize) -> Result<(), ModelError> {
    let len = shape.iter().try_fold(labels, |len, &n| len.checked_mul(n));
    if shape.contains(&0) || len != Some(numbers) || u32::try_from(labels).is_err() {
        return Err(ModelError::Mismatch {
            what: "numbers of an image set",
            expected: format!("{labels} images of {shape:?}"),
            found: format!("{numbers} numbers"),
        });
    }
    Ok(())
}

/// Reads a matrix of f32 numbers `[n, d]` (or one row `[d]`) from a `.npy` file: queries of a search, rows of a bench.
///
/// # Errors
/// A file that cannot be read, is no `.npy`, has another shape or type, or a number that is not finite.
pub fn read_matrix(path: &Path) -> Result<ndarray::Array2<f32>, ModelError> {
    let array = read_array(path)?;
    let fail =
        |expected: &str, found: String| Err(ModelError::Format { path: path.into(), expected: expected.into(), found });
    let shape = match array.shape[..] {
        [d] => (1, d),
        [n, d] => (n, d),
        _ => return fail("a matrix of shape [n, d]", format!("{:?}", array.shape)),
    };
    let Numbers::Floats(numbers) = array.numbers else { return fail("little-endian f32 numbers", "integers".into()) };
    if let Some(at) = numbers.iter().position(|x| !x.is_finite()) {
        let place = format!("{} in row {}, column {}", numbers[at], at / shape.1, at % shape.1);
        return fail("finite numbers", place);
    }
    Ok(ndarray::Array2::from_shape_vec(shape, numbers).expect("the header's shape was checked against the length"))
}

fn read_labels(path: &Path) -> Result<Vec<u32>, ModelError> {
    let array = read_array(path)?;
    let fail =
        |expected: &str, found: String| Err(ModelError::Format { path: path.into(), expected: expected.into(), found });
    if array.shape.len() != 1 {
        return fail("labels of shape [n]", format!("{:?}", array.shape));
    }
    let integers: Vec<i64> = match array.numbers {
        Numbers::Bytes(bytes) => bytes.into_iter().map(i64::from).collect(),
        Numbers::Integers(integers) => integers,
        Numbers::Floats(_) => return fail("labels of an integer type", "floats".into()),
    };
    let class = |&label: &i64| u64::try_from(label).ok().filter(|&label| label < MAX_CLASS).map(|label| label as u32);
    match integers.iter().position(|label| class(label).is_none()) {
        Some(i) => fail("labels from 0 to 65535", format!("{} at place {i}", integers[i])),
        None => Ok(integers.iter().filter_map(class).collect()),
    }
}

/// Reads a whole array file.
fn read_array(path: &Path) -> Result<Array, ModelError> {
    let io = || ModelError::io("read", path);
    let mut file = File::open(path).map_err(io())?;
    let len = file.metadata().map_err(io())?.len();
    let format =
        |expected: &str, found: String| ModelError::Format { path: path.into(), expected: expected.into(), found };
    if len > MAX_FILE_BYTES {
        return Err(format("at most 64 GiB", format!("{len} bytes")));
    }
    // Enough for every header of either format that is not refused.
    let mut head = vec![];
    file.by_ref().take(npy::MAX_HEADER_BYTES as u64).read_to_end(&mut head).map_err(io())?;
    let header = if head.starts_with(npy::MAGIC) {
        npy::header(&head)
    } else if head.starts_with(&[0x1f, 0x8b]) {
        Err(("an array that is not compressed (gunzip it first)", "a gzip file".into()))
    } else {
        idx::header(&head)
    };
    let header = header.map_err(|(expected, found)| format(expected, found))?;
    let bytes = header.shape.iter().try_fold(header.width as u64, |len, &n| len.checked_mul(n as u64));
    if header.shape.contains(&0) || bytes.and_then(|bytes| bytes.checked_add(header.len as u64)) != Some(len) {
        let expected =
            format!("a header of {} bytes and {:?} numbers of {} bytes", header.len, header.shape, header.width);
        return Err(format(&expected, format!("{len} bytes in all")));
    }
    let mut data = head.split_off(header.len);
    data.reserve_exact((len as usize).saturating_sub(header.len + data.len()));
    file.read_to_end(&mut data).map_err(io())?;
    if data.len() + header.len != len as usize {
        return Err(format("a file that stays as it is while it is read", "another length".into()));
    }
    Ok(Array { shape: header.shape, numbers: (header.decode)(data) })
}

/// What a header says: where the numbers begin and what they are.
struct Header {
    len: usize,
    shape: Vec<usize>,
    /// Bytes of one number.
    width: usize,
    decode: fn(Vec<u8>) -> Numbers,
}

/// Expected and found.
type Refusal = (&'static str, String);

fn bytes(data: Vec<u8>) -> Numbers {
    Numbers::Bytes(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
        while !(header.len() + 11).is_multiple_of(64) {
            header.push(' ');
        }
        header.push('\n');
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(data);
        file
    }

    fn idx(kind: u8, shape: &[u32], data: &[u8]) -> Vec<u8> {
        let mut file = vec![0, 0, kind, shape.len() as u8];
        shape.iter().for_each(|n| file.extend(n.to_be_bytes()));
        file.extend(data);
        file
    }

    fn open(images: &[u8], labels: &[u8], normalization: &Normalization) -> Result<ImageSet, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        let (images_path, labels_path) = (dir.path().join("images"), dir.path().join("labels"));
        std::fs::write(&images_path, images).unwrap();
        std::fs::write(&labels_path, labels).unwrap();
        ImageSet::open(&images_path, &labels_path, normalization)
    }

    fn image(set: &ImageSet, i: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; set.shape().iter().product()];
        set.image_into(i, &mut out);
        out
    }

    #[test]
    fn picked_images_come_in_the_order_asked_for() {
        let normalization = Normalization { mean: vec![0.5], std: vec![0.25] };
        let bytes = ImageSet::from_u8([1, 1, 2], vec![0, 1, 10, 11, 20, 21], vec![0, 1, 2], &normalization).unwrap();
        let floats: Vec<f32> = (0..6).map(|i| i as f32).collect();
        let floats = ImageSet::from_f32([1, 1, 2], floats, vec![0, 1, 2], &Normalization::default()).unwrap();
        for set in [bytes, floats] {
            let picked = set.picked(&[2, 0, 2]).unwrap();
            assert_eq!((picked.len(), picked.labels()), (3, &[2u32, 0, 2][..]));
            for (to, from) in [(0, 2), (1, 0), (2, 2)] {
                assert_eq!(image(&picked, to), image(&set, from));
            }
            assert!(set.picked(&[3]).unwrap_err().to_string().contains("below 3"));
            assert!(set.picked(&[]).unwrap_err().to_string().contains("at least 1"));
        }
    }

    #[test]
    fn both_formats_give_the_same_images() {
        let pixels = [0, 255, 51, 102, 1, 2, 3, 4];
        let normalization = Normalization { mean: vec![0.5], std: vec![0.25] };
        let labels = idx(8, &[2], &[1, 0]);
        let a = open(&idx(8, &[2, 2, 2], &pixels), &labels, &normalization).unwrap();
        let b = open(
            &npy("|u1", "(2, 2, 2)", &pixels),
            &npy("<i8", "(2,)", &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            &normalization,
        )
        .unwrap();
        assert_eq!((a.len(), a.shape(), a.labels(), a.n_classes()), (2, [1, 2, 2], &[1u32, 0][..], 2));
        assert_eq!(image(&a, 0), [-2.0, 2.0, (51.0 / 255.0 - 0.5) / 0.25, (102.0 / 255.0 - 0.5) / 0.25]);
        for i in 0..2 {
            assert_eq!(image(&a, i), image(&b, i));
        }
        let floats: Vec<u8> = pixels.iter().flat_map(|&p| (f32::from(p) / 255.0).to_le_bytes()).collect();
        let c = open(&npy("<f4", "(2, 2, 2)", &floats), &labels, &normalization).unwrap();
        for i in 0..2 {
            assert_eq!(image(&a, i), image(&c, i));
        }
    }

    #[test]
    fn channels_have_their_own_normalisation() {
        let normalization = Normalization { mean: vec![0.0, 1.0], std: vec![1.0, 2.0] };
        let set = ImageSet::from_f32([2, 1, 2], vec![1.0, 2.0, 3.0, 5.0], vec![0], &normalization).unwrap();
        assert_eq!(image(&set, 0), [1.0, 2.0, 1.0, 2.0]);
        let three = Normalization { mean: vec![0.0; 3], std: vec![1.0] };
        assert!(ImageSet::from_f32([2, 1, 2], vec![0.0; 4], vec![0], &three).is_err());
    }

    #[test]
    fn files_that_lie_are_refused_with_a_reason() {
        let labels = idx(8, &[2], &[0, 1]);
        let good = idx(8, &[2, 1, 2], &[1, 2, 3, 4]);
        let cases: [(Vec<u8>, Vec<u8>, &str); 14] = [
            (vec![], labels.clone(), "found"),
            (vec![0x1f, 0x8b, 8, 0], labels.clone(), "gunzip"),
            (good[..good.len() - 1].to_vec(), labels.clone(), "bytes in all"),
            (idx(8, &[u32::MAX, u32::MAX, u32::MAX], &[]), labels.clone(), "bytes in all"),
            (idx(8, &[0, 2, 2], &[]), labels.clone(), "bytes in all"),
            (idx(9, &[2, 1, 2], &[1, 2, 3, 4]), labels.clone(), "type"),
            (npy("|u1", "(2, 99999999999999999999)", &[]), labels.clone(), "shape"),
            (npy("|u1", "(2, 18446744073709551615)", &[]), labels.clone(), "bytes in all"),
            (npy("|O", "(2, 2)", &[0; 4]), labels.clone(), "|O"),
            (npy("<f4", "(2, 1)", &[0, 0, 192, 127, 0, 0, 0, 0]), labels.clone(), "finite"),
            (npy("|u1", "(4,)", &[0; 4]), labels.clone(), "[n, H, W]"),
            (good.clone(), idx(8, &[3], &[0, 1, 2]), "one per image"),
            (good.clone(), npy("<i4", "(2,)", &[255, 255, 255, 255, 0, 0, 0, 0]), "-1 at place 0"),
            (good, npy("<f4", "(2,)", &[0; 8]), "integer"),
        ];
        for (images, labels, hint) in cases {
            let message = open(&images, &labels, &Normalization::default()).unwrap_err().to_string();
            assert!(message.contains(hint), "{hint}: {message}");
        }
        let mut fortran = npy("|u1", "(2, 2)", &[0; 4]);
        let at = fortran.windows(5).position(|w| w == b"False").unwrap();
        fortran[at..at + 5].copy_from_slice(b"True ");
        let message = open(&fortran, &labels, &Normalization::default()).unwrap_err().to_string();
        assert!(message.contains("C order"), "{message}");
    }

    proptest! {
        /// Whatever stands in a file, reading it ends in an answer.
        #[test]
        fn no_bytes_panic(start in 0usize..3, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let heads: [&[u8]; 3] = [b"\x93NUMPY\x01\x00", b"\0\0\x08", b""];
            let file = [heads[start], &bytes].concat();
            let _ = open(&file, &file, &Normalization::default());
        }
    }
}
