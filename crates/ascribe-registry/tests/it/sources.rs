//! The same records out of every format, and what hostile files meet.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int32Type;
use ascribe_core::{Digest, NoProgress};
use ascribe_registry::{CanonicalRecord, Fields, Ingest, RegistryError, SourceFormat, SourceSet};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use tempfile::TempDir;

const RECORDS: [(&str, &str); 4] = [
    ("a", "plain"),
    ("b/2", "tab\t \"quotes\" back\\ and, commas"),
    ("天", "二 lines\nand 天地玄黄"),
    ("z", " \u{1F600} "),
];

fn ingest(path: &Path, fields: &Fields) -> Result<(Digest, u64), RegistryError> {
    let set = SourceSet::find(path)?;
    let summary = Ingest { set: &set, fields, strict: false }.run(None, &NoProgress)?;
    Ok((summary.root, summary.record_count))
}

fn refusal(path: &Path) -> String {
    ingest(path, &Fields::default()).unwrap_err().to_string()
}

fn jsonl() -> String {
    RECORDS.iter().map(|(id, text)| serde_json::json!({ "id": id, "text": text }).to_string() + "\n").collect()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 3).unwrap()
}

fn batch(dictionary: bool) -> RecordBatch {
    let column = |i: usize| RECORDS.iter().map(move |record| if i == 0 { record.0 } else { record.1 });
    let text: ArrayRef = if dictionary {
        Arc::new(column(1).collect::<DictionaryArray<Int32Type>>())
    } else {
        Arc::new(StringArray::from_iter_values(column(1)))
    };
    let ids: ArrayRef = Arc::new(StringArray::from_iter_values(column(0)));
    let other: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3, 4]));
    RecordBatch::try_from_iter([("n", other), ("text", text), ("id", ids)]).unwrap()
}

fn parquet(batch: &RecordBatch, compression: Compression) -> Vec<u8> {
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

fn arrow_file(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = arrow::ipc::writer::FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

fn arrow_stream(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

fn csv(delimiter: u8) -> Vec<u8> {
    let mut writer = csv::WriterBuilder::new().delimiter(delimiter).from_writer(Vec::new());
    writer.write_record(["text", "n", "id"]).unwrap();
    RECORDS.iter().for_each(|(id, text)| writer.write_record([text, "1", id]).unwrap());
    writer.into_inner().unwrap()
}

#[test]
fn every_format_has_the_same_root() {
    let dir = TempDir::new().unwrap();
    let plain = dir.path().join("r.jsonl");
    fs::write(&plain, jsonl()).unwrap();
    let expected = ingest(&plain, &Fields::default()).unwrap();
    assert_eq!(expected.1, 4);
    let with_more: String = RECORDS
        .iter()
        .map(|(id, text)| serde_json::json!({ "meta": { "deep": [1] }, "text": text, "id": id }).to_string() + "\r\n")
        .collect();
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("cut.jsonl", jsonl().trim_end().as_bytes().to_vec()),
        ("more.ndjson", with_more.into_bytes()),
        ("r.jsonl.gz", gz(jsonl().as_bytes())),
        ("r.jsonl.zst", zst(jsonl().as_bytes())),
        ("r.csv", csv(b',')),
        ("r.tsv.gz", gz(&csv(b'\t'))),
        ("plain.parquet", parquet(&batch(false), Compression::UNCOMPRESSED)),
        ("snappy.parquet", parquet(&batch(true), Compression::SNAPPY)),
        ("zstd.parquet", parquet(&batch(false), Compression::ZSTD(Default::default()))),
        ("r.arrow", arrow_file(&batch(false))),
        ("dictionary.arrow", arrow_file(&batch(true))),
        ("stream.arrow", arrow_stream(&batch(false))),
    ];
    for (name, bytes) in files {
        let folder = dir.path().join(format!("folder-{name}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
        fs::write(folder.join("README.md"), "What this is.").unwrap();
        assert_eq!(ingest(&folder, &Fields::default()).unwrap(), expected, "{name}");
    }
}

#[test]
fn a_saved_hugging_face_dataset_is_read() {
    let dir = TempDir::new().unwrap();
    let plain = dir.path().join("r.jsonl");
    fs::write(&plain, jsonl()).unwrap();
    let expected = ingest(&plain, &Fields::default()).unwrap();
    // A dictionary of splits, each saved as Arrow streams that its state file names.
    let saved = dir.path().join("saved");
    fs::create_dir_all(saved.join("train")).unwrap();
    fs::write(saved.join("dataset_dict.json"), r#"{"splits": ["train"]}"#).unwrap();
    let state = r#"{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}"#;
    fs::write(saved.join("train/state.json"), state).unwrap();
    fs::write(saved.join("train/data-00000-of-00001.arrow"), arrow_stream(&batch(false))).unwrap();
    assert_eq!(ingest(&saved, &Fields::default()).unwrap(), expected);
    // A state file that points out of its folder.
    fs::write(saved.join("train/state.json"), state.replace("data-00000", "../../data-00000")).unwrap();
    assert!(refusal(&saved).contains("expected a plain name in the same folder"));
}

#[test]
fn a_folder_of_texts_is_read_by_path() {
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join("b/c")).unwrap();
    for (file, text) in
        [("b/c/2.txt", "two"), ("a.md", "one"), (".hidden.txt", "no"), ("LICENSE.txt", "no"), ("x.bin", "no")]
    {
        fs::write(dir.path().join(file), text).unwrap();
    }
    let set = SourceSet::find(dir.path()).unwrap();
    assert_eq!((set.format, set.files.len()), (SourceFormat::Text, 2));
    let mut seen = Vec::new();
    let fields = Fields::default();
    Ingest { set: &set, fields: &fields, strict: false }
        .each_record(&NoProgress, |row, record| {
            seen.push((row, record.id.clone().into_owned(), record.text.clone().into_owned()));
            Ok::<(), RegistryError>(())
        })
        .unwrap();
    let expected = [(0, "a.md", "one"), (1, "b/c/2.txt", "two")];
    assert_eq!(seen, expected.map(|(row, id, text)| (row, id.to_owned(), text.to_owned())));
}

#[test]
fn columns_are_named_and_missing_ones_told() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("r.csv");
    fs::write(&path, "url,body\nu1,one\nu2,\n").unwrap();
    let message = refusal(&path);
    assert!(message.contains("columns: expected one named \"text\", found url, body (hint: "), "{message}");
    let fields = Fields { id: "url".into(), text: "body".into(), skip_empty: false };
    let message = ingest(&path, &fields).unwrap_err().to_string();
    assert!(message.contains("r.csv:2: body: expected a string that is not empty, found none (hint:"), "{message}");
    assert_eq!(ingest(&path, &Fields { skip_empty: true, ..fields }).unwrap().1, 1);
    // Records without ids are called by file and place.
    fs::write(&path, "text\none\ntwo\n").unwrap();
    let set = SourceSet::find(&path).unwrap();
    let mut ids = Vec::new();
    Ingest { set: &set, fields: &Fields::default(), strict: false }
        .each_record(&NoProgress, |_, record| {
            ids.push(record.id.clone().into_owned());
            Ok::<(), RegistryError>(())
        })
        .unwrap();
    assert_eq!(ids, ["r.csv#0", "r.csv#1"]);
    fs::write(dir.path().join("r.jsonl"), jsonl()).unwrap();
    assert!(refusal(dir.path()).contains("expected data files of one format, found [Jsonl, Csv]"));
    assert!(refusal(&TempDir::new().unwrap().path().join("none")).contains("missing folder with records"));
    assert!(refusal(TempDir::new().unwrap().path()).contains("expected records, found no file named"));
}

#[test]
fn bombs_are_refused() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let zeros = vec![b'x'; 64 << 20];
    for (name, bytes) in [("z.jsonl.gz", gz(&zeros)), ("z.txt.zst", zst(&zeros)), ("z.csv.gz", gz(&zeros))] {
        let message = refusal(&write(name, &bytes));
        assert!(
            message.contains("expected a line of at most")
                || message.contains("compressed ones, found more")
                || message.contains("expected a text of at most"),
            "{message}"
        );
    }
    // One text in the dictionary, a million rows that name it.
    let text: ArrayRef =
        Arc::new(std::iter::repeat_n("x".repeat(100_000).as_str(), 20_000).collect::<DictionaryArray<Int32Type>>());
    let repeated =
        parquet(&RecordBatch::try_from_iter([("text", text)]).unwrap(), Compression::ZSTD(Default::default()));
    let message = refusal(&write("d.parquet", &repeated));
    assert!(message.contains("expected no more than the cap for a file of this size"), "{message}");
}

#[test]
fn deep_json_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("deep.jsonl");
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let (open, close) = (open.repeat(100_000), close.repeat(100_000));
        // What is left out is skipped without recursion, however deep; a text must be a string.
        fs::write(&path, format!("{{\"id\":\"a\",\"text\":\"x\",\"meta\":{open}1{close}}}\n")).unwrap();
        assert_eq!(ingest(&path, &Fields::default()).unwrap().1, 1);
        fs::write(&path, format!("{{\"id\":\"a\",\"text\":\"x\",\"meta\":{open}\n")).unwrap();
        assert!(refusal(&path).contains("deep.jsonl:1: EOF while parsing"), "{}", refusal(&path));
        fs::write(&path, format!("{{\"id\":\"a\",\"text\":{open}1{close}}}\n")).unwrap();
        assert!(refusal(&path).contains("deep.jsonl:1: invalid type: "), "{}", refusal(&path));
        // Licences are read whole, under a limit.
        fs::write(&path, format!("{open}1{close}")).unwrap();
        let message = ascribe_registry::NewSigned::read(&path).unwrap_err().to_string();
        assert!(message.contains("recursion limit exceeded"), "{message}");
    }
    fs::write(&path, "{\"id\":\"a\",\"text\":\"x\",\"text\":\"y\"}\n").unwrap();
    assert!(refusal(&path).contains("text: expected it once, found it twice"));
}

#[test]
fn claims_beyond_the_file_are_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("r.arrow");
    let stream = arrow_stream(&batch(false));
    // Every byte of the metadata of every message, made large: never an allocation of what it claims.
    for i in 0..stream.len().min(1500) {
        let mut changed = stream.clone();
        changed[i] = 0x7f;
        fs::write(&path, changed).unwrap();
        let _ = ingest(&path, &Fields::default());
    }
    // The file form claims them once more in its footer.
    let file = arrow_file(&batch(true));
    for i in 0..file.len() {
        for value in [0x7f, 0xff] {
            let mut changed = file.clone();
            changed[i] = value;
            fs::write(&path, changed).unwrap();
            let _ = ingest(&path, &Fields::default());
        }
    }
    let mut long = stream;
    long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    fs::write(&path, long).unwrap();
    assert!(refusal(&path).contains("metadata length of the message at byte 0"), "{}", refusal(&path));
}

#[test]
fn the_root_does_not_depend_on_threads() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("many.jsonl");
    let many: String =
        (0..60_000).map(|i| format!("{{\"id\":\"{i}\",\"text\":\"{}\"}}\n", "word ".repeat(i % 40 + 1))).collect();
    fs::write(&path, &many).unwrap();
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| ingest(&path, &Fields::default()).unwrap())
    };
    assert_eq!(on(1), on(3));
    // The root of a registry's own file is what its strict reader says.
    let strict = ascribe_registry::content::summarise(&path).unwrap();
    assert_eq!((strict.root, strict.record_count), on(2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_files_are_refused_or_read_but_never_a_fault(
        kind in 0usize..8, place in any::<prop::sample::Index>(), change in 1u8..=255, cut in any::<bool>(),
    ) {
        let (name, mut bytes) = match kind {
            0 => ("r.jsonl", jsonl().into_bytes()),
            1 => ("r.jsonl.gz", gz(jsonl().as_bytes())),
            2 => ("r.jsonl.zst", zst(jsonl().as_bytes())),
            3 => ("r.csv", csv(b',')),
            4 => ("r.parquet", parquet(&batch(false), Compression::SNAPPY)),
            5 => ("r.parquet", parquet(&batch(true), Compression::ZSTD(Default::default()))),
            6 => ("r.arrow", arrow_file(&batch(false))),
            _ => ("r.arrow", arrow_stream(&batch(true))),
        };
        let i = place.index(bytes.len());
        if cut { bytes.truncate(i) } else { bytes[i] ^= change }
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join(name), bytes).unwrap();
        if let Err(error) = ingest(&dir.path().join(name), &Fields::default()) {
            prop_assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn any_line_is_its_own_or_rewritten(text in "\\PC{1,60}", id in "\\PC{1,20}", more in any::<bool>()) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("r.jsonl");
        let mut value = serde_json::json!({ "id": id, "text": text });
        if more {
            value["n"] = 7.into();
        }
        fs::write(&path, format!("{value}\n")).unwrap();
        let line = ascribe_registry::content::record_line(&id, &text);
        let expected = ascribe_tlog::leaf_hash(&Digest::of(line.as_bytes()).0);
        prop_assert_eq!(ingest(&path, &Fields::default()).unwrap().0, expected);
    }
}

/// Lines that are canonical already are copied as they were read, all others are written anew; what is left out is not copied.
#[test]
fn a_copy_is_the_canonical_lines_whatever_the_source() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("mixed.jsonl");
    let (plain, more) = (r#"{"id":"1","text":"é\u00e9 a"}"#, r#"{"text":"b","id":"2","more":7}"#);
    let (empty, last) = (r#"{"id":"3","text":""}"#, r#"{ "id":"4", "text":"spaces stay" }"#);
    let cases = [
        vec![plain],
        vec![plain, last],
        vec![plain, more, last],
        vec![more, plain],
        vec![plain, empty],
        vec![plain, empty, last],
        vec![empty, plain, more],
    ];
    for lines in cases {
        for end in ["", "\n"] {
            fs::write(&path, lines.join("\n") + end).unwrap();
            let fields = Fields { skip_empty: true, ..Fields::default() };
            let set = SourceSet::find(&path).unwrap();
            let ingest = Ingest { set: &set, fields: &fields, strict: false };
            let (mut copy, mut expected) = (Vec::new(), String::new());
            let summary = ingest.run(Some(&mut copy), &NoProgress).unwrap();
            let mut put = |_, record: &CanonicalRecord<'_>| {
                expected += &record.line;
                expected.push('\n');
                Ok::<(), RegistryError>(())
            };
            ingest.each_record(&NoProgress, &mut put).unwrap();
            assert_eq!(String::from_utf8(copy).unwrap(), expected, "{lines:?} {end:?}");
            assert_eq!(summary.len_bytes, expected.len() as u64);
        }
    }
}
