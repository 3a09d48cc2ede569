//! Four datasets of three owners and six responses, by hand.

use ascribe_core::{Digest, QueryId};
use ascribe_registry::Registry;
use ascribe_shares::{
    DatasetEntry, Evidence, InfluenceProportional, OwnerMap, Provenance, ShareBook, SharePolicy, Values, Verdict,
};
use ndarray::{Array2, Array3, arr2};

pub fn owners() -> OwnerMap {
    let entry = |(n, owner): (u8, &str)| DatasetEntry {
        uuid: format!("urn:uuid:00000000-0000-0000-0000-00000000000{n}"),
        name: format!("set-{n}"),
        owner: owner.into(),
    };
    OwnerMap::new([(0, "Zoe"), (1, "Ada"), (2, "Ada"), (3, "Bob")].map(entry).to_vec()).unwrap()
}

pub fn provenance() -> Provenance {
    Provenance { scores_sha256: Digest::of(b"scores"), spec: Digest::of(b"spec"), registry: Digest::of(b"registry") }
}

pub fn queries(n: u32) -> Vec<QueryId> {
    (0..n).map(|n| QueryId(n + 10)).collect()
}

/// Every interval from `low` to `high`.
pub fn intervals(n: usize, low: f64, high: f64) -> Array3<f64> {
    Array3::from_shape_fn((n, 4, 2), |(_, _, end)| if end == 0 { low } else { high })
}

/// Raw scores: Zoe alone; a tie; Ada's loss eats half of her gain; all negative; all zero; cancellation.
pub fn raw() -> Array2<f64> {
    let tiny = 2f64.powi(-40);
    arr2(&[
        [1.0, 0.0, -0.0, -7.0],
        [1.0, 0.0, 0.0, 1.0],
        [1.0, 4.0, -2.0, 1.0],
        [-1.0, -2.0, -3.0, -4.0],
        [0.0, -0.0, 0.0, 0.0],
        [tiny, 1.0, -1.0, 0.0],
    ])
}

pub fn book() -> ShareBook {
    let (scores, intervals, queries) = (raw(), intervals(6, 0.1, 0.6), queries(6));
    let evidence = Evidence {
        queries: &queries,
        values: Values::Raw { scores: scores.view(), noise_floor: 0.0 },
        intervals: intervals.view(),
        coverage: 0.75,
        provenance: provenance(),
    };
    InfluenceProportional::default().shares(&evidence, &owners()).unwrap()
}

#[test]
fn by_hand() {
    let book = book();
    use Verdict::{Cancelled, NoProponent, Payable};
    let verdicts: Vec<Verdict> = book.responses.iter().map(|response| response.verdict).collect();
    assert_eq!(verdicts, [Payable, Payable, Payable, NoProponent, NoProponent, Cancelled]);
    let ppm = |idx: usize| -> Vec<(u32, u32)> {
        book.responses[idx].shares.iter().map(|share| (share.dataset, share.share_ppm)).collect()
    };
    assert_eq!(ppm(0), [(0, 1_000_000)]);
    assert_eq!(ppm(1), [(0, 500_000), (3, 500_000)]);
    // Ada nets 4 - 2 = 2 on her positive dataset; Zoe and Bob have 1 each.
    assert_eq!(ppm(2), [(0, 250_000), (1, 500_000), (3, 250_000)]);
    // The scale of row 2 is 2^59 per unit: 4 is 2^61.
    assert_eq!(book.responses[2].shares[1].weight, 1 << 60);
    let owners: Vec<(&str, u128, u32)> = book.responses[2]
        .owners
        .iter()
        .map(|share| (book.owners.owners()[share.owner as usize].as_str(), share.weight, share.share_ppm))
        .collect();
    assert_eq!(owners, [("Ada", 1 << 60, 500_000), ("Bob", 1 << 59, 250_000), ("Zoe", 1 << 59, 250_000)]);
    assert_eq!(book.responses[2].shares[0].low_ppm, 100_000);
    assert_eq!(book.responses[2].shares[0].high_ppm, 600_000);
    let table = book.table().unwrap();
    assert_eq!(table.coverage_ppm, 750_000);
    assert_eq!(table.responses.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 3, 0, 0, 0]);
    assert_eq!((book.count(Payable), book.count(NoProponent), book.count(Cancelled)), (3, 2, 1));
}

#[test]
fn calibrated_shares_stay_in_proportion() {
    let values = arr2(&[[0.5, 0.25, 0.25, 0.0], [f64::from_bits(3), -0.0, f64::from_bits(1), 0.0]]);
    let (intervals, queries) = (intervals(2, 0.1, 0.6), queries(2));
    let evidence = Evidence {
        queries: &queries,
        values: Values::Calibrated(values.view()),
        intervals: intervals.view(),
        coverage: 1.0,
        provenance: provenance(),
    };
    let book = InfluenceProportional::default().shares(&evidence, &owners()).unwrap();
    let weights = |idx: usize| -> Vec<u64> { book.responses[idx].shares.iter().map(|share| share.weight).collect() };
    assert_eq!(weights(0), [1 << 61, 1 << 60, 1 << 60]);
    // Two denormals, three to one.
    assert_eq!(weights(1), [3 << 60, 1 << 60]);
    assert_eq!(book.responses[0].owners.len(), 2);
    assert!(book.policy.text().unwrap().contains("\"evidence\":\"calibrated\""));
}

/// The noise gate: Ada's net of 2 passes a floor of 1.5, the nets of 1 do not.
#[test]
fn a_net_below_the_noise_earns_nothing() {
    let (scores, intervals, queries) = (raw(), intervals(6, 0.1, 0.6), queries(6));
    let gated = |noise_floor: f64| {
        let values = Values::Raw { scores: scores.view(), noise_floor };
        let (intervals, coverage, provenance) = (intervals.view(), 1.0, provenance());
        let evidence = Evidence { queries: &queries, values, intervals, coverage, provenance };
        InfluenceProportional::default().shares(&evidence, &owners()).unwrap()
    };
    let book = gated(1.5);
    assert_eq!(book.responses[2].shares.iter().map(|share| share.dataset).collect::<Vec<_>>(), [1]);
    assert_eq!(book.responses[0].verdict, Verdict::NoProponent);
    // A floor far above every score, and one so far that it leaves the integers.
    for floor in [1e6, 1e300] {
        assert_eq!(gated(floor).count(Verdict::NoProponent), 6);
    }
}

#[test]
fn noisy_responses_are_not_paid() {
    let (scores, queries) = (raw(), queries(6));
    let judge = |low: f64, high: f64, policy: InfluenceProportional| {
        let intervals = intervals(6, low, high);
        let values = Values::Raw { scores: scores.view(), noise_floor: 0.0 };
        let (intervals, coverage, provenance) = (intervals.view(), 1.0, provenance());
        let evidence = Evidence { queries: &queries, values, intervals, coverage, provenance };
        let book = policy.shares(&evidence, &owners()).unwrap();
        let n_shares = book.table().unwrap().responses[2].len();
        assert_eq!(book.responses[2].shares.len(), 3, "the shares are shown whatever the verdict");
        (book.responses[2].verdict, n_shares)
    };
    let strict = InfluenceProportional::default();
    let lenient = InfluenceProportional { max_width_ppm: 1_000_000, require_positive_low: false };
    assert_eq!(judge(0.1, 0.89, strict), (Verdict::Payable, 3));
    assert_eq!(judge(0.1, 0.95, strict), (Verdict::TooNoisy, 0));
    assert_eq!(judge(0.0, 0.2, strict), (Verdict::TooNoisy, 0));
    assert_eq!(judge(-3.0, 0.2, strict), (Verdict::TooNoisy, 0));
    assert_eq!(judge(0.000_000_9, 0.2, strict), (Verdict::TooNoisy, 0));
    assert_eq!(judge(-3.0, 7.0, lenient), (Verdict::Payable, 3));
}

/// Order of the responses moves nothing else.
#[test]
fn responses_do_not_see_each_other() {
    let (scores, intervals, mut queries) = (raw(), intervals(6, 0.1, 0.6), queries(6));
    queries.reverse();
    let turned = scores.slice(ndarray::s![..;-1, ..]).to_owned();
    let evidence = Evidence {
        queries: &queries,
        values: Values::Raw { scores: turned.view(), noise_floor: 0.0 },
        intervals: intervals.view(),
        coverage: 0.75,
        provenance: provenance(),
    };
    let mut turned = InfluenceProportional::default().shares(&evidence, &owners()).unwrap();
    turned.responses.reverse();
    assert_eq!(turned, book());
}

/// The registry that ships with the repository.
#[test]
fn owners_come_from_the_registry() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../datasets");
    let registry = Registry::open(folder.as_ref()).unwrap();
    let map = OwnerMap::of_registry(&registry).unwrap();
    assert_eq!(map.datasets().len(), registry.datasets().len());
    let names: Vec<&str> = registry.owners().owners.iter().map(|owner| owner.name.as_str()).collect();
    assert_eq!(map.owners(), names);
    assert_eq!(map.owner_idx(), registry.owners().owner_idx);
    assert!(map.owners().len() < map.datasets().len(), "one owner has two datasets");
}
