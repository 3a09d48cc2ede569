//! `ascribe search` and `ascribe bench search`.

use anyhow::Result;
use ascribe_core::Progress;
use ascribe_engine::search::bench::{self, BenchReport};
use ascribe_engine::search::{self, SearchReport};

use crate::args::Format;
use crate::args::search::{BenchSearchArgs, SearchArgs};
use crate::output::{print, table};

/// Runs `search`.
pub fn run(args: &SearchArgs, format: Format, bars: &dyn Progress) -> Result<()> {
    print(format, &search::run(&args.request(), bars)?, text)
}

/// Runs `bench search`.
pub fn measure(args: &BenchSearchArgs, format: Format, bars: &dyn Progress) -> Result<()> {
    print(format, &bench::run(&args.request(), bars)?, bench_text)
}

fn text(report: &SearchReport) -> String {
    let proof = match (report.proven, report.recall) {
        (true, _) => "proven to be the best".to_owned(),
        (false, Some(recall)) => format!("recall {recall:.3} when the index was built"),
        (false, None) => "recall unknown".to_owned(),
    };
    let mut out = format!("{} rows, generation {}; hits {proof}\n", report.rows, report.generation);
    for (query, hits) in report.queries.iter().enumerate() {
        let again = hits.rows_rescored.map_or_else(String::new, |n| format!(", {n} rows scored again"));
        out += &format!("\nquery {query}{again}\n");
        let row = |i: usize| {
            let example = format!("{}:{}", hits.datasets[i], hits.ids[i] & 0xffff_ffff);
            vec![example, hits.rows[i].to_string(), format!("{:+.6e}", hits.scores[i])]
        };
        out += &table(&["example", "row", "score"], &(0..hits.ids.len()).map(row).collect::<Vec<_>>());
    }
    out
}

fn bench_text(report: &BenchReport) -> String {
    let verdict = if report.certified_equals_exact { "equal to" } else { "NOT EQUAL TO" };
    let mut out = format!(
        "{} rows of {} numbers, {} threads\nmemory {:.1} GB/s; scan of int8 rows {:.1} GB/s, certified search of them {:.1} GB/s, \
         {verdict} brute force\ncertified {:.2} ms one query ({} rows, {} scored again; int8 alone {:.2} ms), {:.2} ms the block ({:.0} a \
         query scored again); brute force {:.2} and {:.2} ms\n\n",
        report.rows,
        report.dim,
        report.threads,
        report.read_gb_s,
        report.scan_gb_s,
        report.certified_gb_s,
        report.certified_ms[0],
        report.certified_scanned,
        report.certified_rescored,
        report.certified_int8_ms,
        report.certified_ms[1],
        report.rows_rescored_mean,
        report.exact_ms[0],
        report.exact_ms[1],
    );
    let scan = |s: &bench::ScanFigure| {
        let numbers = [format!("{:.1}", s.gb_s), format!("{:.0}", s.gop_s), format!("{:.0}", s.peak_gop_s)];
        [s.row_type.to_owned(), s.queries.to_string()].into_iter().chain(numbers).collect()
    };
    let header = ["rows", "queries", "GB/s", "Gop/s", "in cache"];
    out += &table(&header, &report.scans.iter().map(scan).collect::<Vec<Vec<String>>>());
    if let Some(cold) = &report.cold {
        let part = cold.from_disk.map_or_else(|| "an unknown part".to_owned(), |part| format!("{:.0} %", 100.0 * part));
        out += &format!(
            "\nfrom the disk ({part} of {:.2} GB): read one after the other {:.2} GB/s; certified search of int8 rows {:.2} \
             GB/s, the first after opening {:.2}\n",
            cold.bytes as f64 / 1e9,
            cold.read_gb_s,
            cold.scan_gb_s,
            cold.first_scan_gb_s
        );
    }
    if !report.hnsw.is_empty() {
        let row = |h: &bench::HnswFigure| {
            vec![h.ef.to_string(), format!("{:.4}", h.recall), format!("{:.0}", h.qps), format!("{:.0}", h.qps_per_cpu)]
        };
        let header = ["ef", "recall@10", "queries/s", "queries/CPU-s"];
        out += &format!("\n{}", table(&header, &report.hnsw.iter().map(row).collect::<Vec<_>>()));
    }
    out
}
