//! One response at a time gives what the walk gave all of them.

use ascribe_core::{NoProgress, QueryId};
use ascribe_engine::respond::{Ask, EMBEDDING, Filter, Input, Material, RespondError, Responder};
use ascribe_engine::walk::calibrate::{channels_of, tables};
use ascribe_engine::walk::intervals::Intervals;
use ascribe_methods::combine::CalibratedMethod;
use ascribe_store::read_scores;

use crate::common::{DATASETS, SHOWN, Tiny, digests, finished, temp_dir};

fn ask(input: Input) -> Ask {
    Ask { input, method: None, k: 5, min_score: None, filter: Filter::default(), tokens: false, verbatim: false }
}

fn open(tiny: &Tiny, cache: &std::path::Path) -> Material {
    Material::open(&tiny.home(), &tiny.out(), cache, &NoProgress).unwrap()
}

#[test]
fn a_response_has_the_bytes_of_the_walk() {
    let (tiny, cache) = (&finished().tiny, temp_dir());
    let before = digests(&tiny.out());
    let material = open(tiny, cache.path());
    let responder = Responder::new(&material).unwrap();
    let scores = read_scores(&tiny.out().join("scores.parquet")).unwrap();
    let names = ["trajectory_fisher", EMBEDDING, "bm25"].map(String::from);
    let walked = tables(&scores, &names).unwrap();
    let method: CalibratedMethod = Intervals::read(&tiny.out()).unwrap().method;
    let shares = method.calibration.predict(&channels_of(&walked)).unwrap();
    for q in 0..material.opened.examples {
        for (at, name) in [(0, "trajectory_fisher"), (1, EMBEDDING)] {
            let found = responder.respond(&Ask { method: Some(name.into()), ..ask(Input::Example(q)) }).unwrap();
            assert_eq!(found.scores, walked[at].1.row(q).to_vec(), "{name}, response {q}");
        }
        let fisher = scores.datasets("block_fisher").unwrap().values;
        let found = responder.respond(&Ask { method: Some("block_fisher".into()), ..ask(Input::Example(q)) }).unwrap();
        // The sums are solved in the place of the response: a few thousand products of f64, seen from the largest score.
        let size = fisher.row(q).iter().fold(0.0f64, |m, x| m.max(x.abs()));
        for (mine, theirs) in found.scores.iter().zip(fisher.row(q)) {
            assert!((mine - theirs).abs() <= 1e-9 * size, "response {q}: {mine} {theirs}");
        }
        let found = responder.respond(&ask(Input::Example(q))).unwrap();
        let mine: Vec<f64> = found.shares.iter().map(|s| s.share).collect();
        assert_eq!(mine, shares.row(q).to_vec(), "response {q}");
        assert!((mine.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(found.coverage, method.coverage());
        // The best examples are those of the score file, in its order.
        let rows = scores.top_examples("block_fisher", QueryId(q as u32));
        let top: Vec<_> = rows.filter_map(|row| row.example()).take(5).collect();
        let ids: Vec<_> = found.hits.iter().map(|h| h.example).collect();
        assert_eq!(ids, top, "response {q}");
        assert_eq!((found.approx.mode, found.approx.recall), ("certified", 1.0));
    }
    // Nothing was written into the run.
    assert_eq!(digests(&tiny.out()), before);
    // What was derived is found again, and answers are the same.
    let again = open(tiny, cache.path());
    assert_eq!(again.opened, material.opened);
    let first = responder.respond(&ask(Input::Example(1))).unwrap();
    assert_eq!(Responder::new(&again).unwrap().respond(&ask(Input::Example(1))).unwrap(), first);
}

/// Without a bank's held-out folds, the walk's own spreads are those of the fitted method: so are a response's.
#[test]
fn spreads_are_those_of_the_walk() {
    let (tiny, cache) = (&finished().tiny, temp_dir());
    let material = open(tiny, cache.path());
    let responder = Responder::new(&material).unwrap();
    let walked = Intervals::read(&tiny.out()).unwrap();
    for (q, response) in walked.responses.iter().enumerate() {
        let found = responder.respond(&ask(Input::Example(q))).unwrap();
        for (mine, theirs) in found.shares.iter().zip(&response.shares) {
            // The walk's sum over responses at once and one response's differ by rounding at most.
            assert!((mine.std_error - theirs.std_error).abs() <= 1e-9 + 1e-6 * theirs.std_error, "response {q}");
        }
        assert_eq!(found.verdict.unwrap().is_payable(), response.verdict.is_payable());
    }
}

#[test]
fn texts_vectors_and_long_responses_are_answered() {
    let (tiny, cache) = (&finished().tiny, temp_dir());
    let material = open(tiny, cache.path());
    let responder = Responder::new(&material).unwrap();
    let text = |prompt: &str, completion: &str| Input::Text { prompt: prompt.into(), completion: completion.into() };
    let record = &material.context.corpus.datasets[0].records;
    let used = material.context.corpus.examples[0].spans[0].record.row as usize;
    let known: String = record[used].text.chars().take(200).collect();
    let mut question = ask(text("", &known));
    (question.tokens, question.verbatim) = (true, true);
    let found = responder.respond(&question).unwrap();
    let tokens = found.tokens.unwrap();
    assert_eq!(tokens.iter().map(|t| t.text.as_str()).collect::<String>(), known);
    assert!(tokens.iter().all(|t| t.influence.is_finite()) && tokens.iter().any(|t| t.influence != 0.0));
    // The record itself stands in the data, from its beginning on, and says so.
    let run = &found.verbatim.unwrap()[0];
    assert_eq!((run.start, run.sources[0].0), (0, 0));
    assert_eq!(run.text, known.chars().take(run.end).collect::<String>());
    // Its licence permits that it is shown; those of the others permit training alone: ids are shown, texts are not.
    for hit in &found.hits {
        let (name, record) = (DATASETS[hit.example.dataset as usize].0, hit.record.as_ref().unwrap());
        let shown = name == SHOWN;
        assert!(record.text.is_some() == shown && record.spans.iter().all(|s| s.text.is_some() == shown), "{record:?}");
        assert!(!record.id.is_empty());
    }

    let long = known.repeat(20);
    let found = responder.respond(&ask(text("a prompt", &long))).unwrap();
    assert!(found.n_tokens > material.context.corpus.manifest.config.seq_len && found.shares.len() == DATASETS.len());
    let one = responder.respond(&ask(text("", "x"))).unwrap();
    assert_eq!(one.n_tokens, 1);

    let row = vec![1e-3; material.opened.dim];
    assert_eq!(responder.respond(&ask(Input::Features(row))).unwrap().method, "block_fisher");
    let huge = vec![1e18; material.opened.dim];
    assert_eq!(responder.respond(&ask(Input::Features(huge))).unwrap().hits.len(), 5);
    let vector = vec![0.5; material.opened.embedding_dim];
    let found = responder.respond(&ask(Input::Embedding(vector))).unwrap();
    assert_eq!((found.method.as_str(), found.approx.mode, found.hits.len()), (EMBEDDING, "ann", 5));
}

#[test]
fn filters_leave_out_and_bad_questions_name_their_field() {
    let (tiny, cache) = (&finished().tiny, temp_dir());
    let material = open(tiny, cache.path());
    let responder = Responder::new(&material).unwrap();
    let filter = Filter { datasets: vec![DATASETS[1].0.into()], ..Filter::default() };
    let all = responder.respond(&ask(Input::Example(0))).unwrap();
    let found = responder.respond(&Ask { filter, ..ask(Input::Example(0)) }).unwrap();
    assert_eq!(found.allowed, [false, true, false]);
    // What stays has the share that it had: nothing is given to it.
    assert_eq!(found.shares, all.shares);
    assert!(found.hits.len() == 5 && found.hits.iter().all(|h| h.example.dataset == 1));
    let check = |question: Ask, wanted: &str| match responder.respond(&question).unwrap_err() {
        RespondError::Refused { field, .. } => assert_eq!(field, wanted),
        RespondError::Engine(error) => panic!("{wanted}: {error}"),
    };
    check(ask(Input::Example(999)), "example");
    check(ask(Input::Features(vec![0.0; 3])), "features");
    check(ask(Input::Embedding(vec![f32::NAN; material.opened.embedding_dim])), "embedding");
    check(ask(Input::Text { prompt: "p".into(), completion: String::new() }), "completion");
    check(Ask { method: Some("random".into()), ..ask(Input::Example(0)) }, "method");
    check(Ask { k: 1_001, ..ask(Input::Example(0)) }, "k");
    let filter = Filter { owners: vec!["Nobody".into()], ..Filter::default() };
    check(Ask { filter, ..ask(Input::Example(0)) }, "filter.owners");
}

#[test]
fn a_changed_run_is_refused_by_the_name_of_the_file() {
    let (tiny, cache) = (finished().tiny.copy_with_run(), temp_dir());
    let path = tiny.out().join("intervals.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen('0', "1", 1)).unwrap();
    let error = Material::open(&tiny.home(), &tiny.out(), cache.path(), &NoProgress).err().unwrap().to_string();
    assert!(error.contains("intervals.json"), "{error}");
}
