//! What answers at the moment: material loaded by a thread of its own, workers that borrow it, a queue before them.
//!
//! A reload starts the next generation beside this one and swaps a pointer when it is ready; requests that began here end here.
//! When the last of them lets go, the queue closes, the workers end, and the material is dropped. A generation that cannot be
//! loaded is reported and changes nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use ascribe_core::NoProgress;
use ascribe_engine::respond::{
    Answer, Ask, Catalog, CatalogDataset, Filter, Input, Material, Opened, RespondError, Responder, Sample,
    StoreMaterial, StoreResponder,
};
use ascribe_engine::{EngineError, Home};
use tokio::sync::oneshot;

use crate::problem::Problem;
use crate::queue::{Queue, Refused};
use crate::routes::catalog::read_reputation;
use crate::wire::Text;

/// Where material comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A finished run of the walk.
    Run {
        /// Folder with `datasets/` and `models/`.
        home: Home,
        /// Run folder.
        dir: PathBuf,
    },
    /// A feature store without a model.
    Store {
        /// The store.
        dir: PathBuf,
        /// Registry that describes its datasets.
        registry: Option<PathBuf>,
    },
}

/// What is known of a generation without asking its workers.
#[derive(Clone, Debug)]
pub struct Known {
    /// What stands behind the answers.
    pub opened: Opened,
    /// Datasets.
    pub catalog: Catalog,
    /// Their names as answers say them, by ordinal.
    pub names: Vec<Names>,
    /// Responses to try.
    pub samples: Vec<Sample>,
    /// Reputation of its datasets, if the run folder holds it.
    pub reputation: Option<serde_json::Value>,
    /// Seconds that loading took.
    pub load_s: f64,
}

/// What a share says of its dataset.
#[derive(Clone, Debug)]
pub struct Names {
    /// Name.
    pub dataset: Text,
    /// `urn:uuid:…`.
    pub dataset_id: Text,
    /// Owner.
    pub owner: Text,
    /// SPDX expression.
    pub licence: Text,
}

impl Names {
    fn of(dataset: &CatalogDataset) -> Self {
        let text = |t: &String| Text::from(t.as_str());
        Self {
            dataset: text(&dataset.name),
            dataset_id: text(&dataset.uuid),
            owner: text(&dataset.owner),
            licence: text(&dataset.licence),
        }
    }
}

impl Known {
    fn new(opened: Opened, catalog: Catalog, began: Instant) -> Self {
        let names = catalog.datasets.iter().map(Names::of).collect();
        let load_s = began.elapsed().as_secs_f64();
        Self { opened, catalog, names, samples: Vec::new(), reputation: None, load_s }
    }
}

/// A question and where its answer goes.
struct Job {
    ask: Ask,
    deadline: Instant,
    reply: oneshot::Sender<Result<Answer, Problem>>,
}

/// One generation.
pub struct Generation {
    /// What is known of it.
    pub known: Known,
    queue: Arc<Queue<Job>>,
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// How a generation works.
#[derive(Clone, Debug)]
pub struct Workers {
    /// Threads.
    pub threads: usize,
    /// Questions that may wait.
    pub queue_depth: usize,
    /// Folder for what is derived from material and worth keeping.
    pub cache: PathBuf,
}

impl Generation {
    /// Loads `source` on a thread of its own; returns when it answers.
    ///
    /// # Errors
    /// What loading refused, in words.
    pub async fn load(source: Source, workers: Workers) -> Result<Self, String> {
        let queue = Arc::new(Queue::new(workers.queue_depth));
        let (ready, loaded) = oneshot::channel();
        let theirs = Arc::clone(&queue);
        let host = move || host(&source, &workers, &theirs, ready);
        std::thread::Builder::new()
            .name("generation".into())
            .spawn(host)
            .map_err(|error| format!("no thread for a new generation: {error}"))?;
        let known = loaded.await.map_err(|_| "the loading thread ended early".to_owned())??;
        Ok(Self { known, queue })
    }

    /// Asks, and waits for the answer until `deadline`.
    ///
    /// # Errors
    /// The queue is full, the answer is late, the question is refused, or a fault.
    pub async fn ask(&self, ask: Ask, deadline: Instant) -> Result<Answer, Problem> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(Job { ask, deadline, reply }).map_err(|refused| match refused {
            Refused::Full => Problem::overloaded("expected room in the queue, found none; hint: try again later"),
            Refused::Closed => Problem::overloaded("this generation takes no more questions; hint: try again"),
        })?;
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Problem::fault()),
            Err(_) => Err(late()),
        }
    }

    /// Questions that wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }
}

fn late() -> Problem {
    Problem::late("expected an answer within the time limit; hint: ask for less")
}

type Ready = oneshot::Sender<Result<Known, String>>;

/// Owns the material for as long as workers borrow it.
fn host(source: &Source, workers: &Workers, queue: &Queue<Job>, ready: Ready) {
    let began = Instant::now();
    match source {
        Source::Run { home, dir } => {
            let made = Material::open(home, dir, &workers.cache, &NoProgress);
            let material = match made {
                Ok(material) => material,
                Err(error) => return tell(ready, Err(error.to_string())),
            };
            let responder = match Responder::new(&material) {
                Ok(responder) => responder,
                Err(error) => return tell(ready, Err(error.to_string())),
            };
            let first = Ask { input: Input::Example(0), ..warm() };
            if let Err(error) = responder.respond(&first) {
                return tell(ready, Err(format!("the first answer failed: {error}")));
            }
            let (samples, reputation) = (material.samples(), read_reputation(dir));
            let known = Known::new(material.opened.clone(), material.catalog.clone(), began);
            let known = Known { samples, reputation, ..known };
            work(queue, workers.threads, ready, known, |ask| responder.respond(ask));
        }
        Source::Store { dir, registry } => {
            let made = StoreMaterial::open(dir, registry.as_deref(), &workers.cache, &NoProgress);
            let material = match made {
                Ok(material) => material,
                Err(error) => return tell(ready, Err(error.to_string())),
            };
            let responder = match StoreResponder::new(&material) {
                Ok(responder) => responder,
                Err(error) => return tell(ready, Err(error.to_string())),
            };
            let first = Ask { input: Input::Embedding(vec![1.0; material.opened.dim]), ..warm() };
            if let Err(error) = responder.respond(&first) {
                return tell(ready, Err(format!("the first answer failed: {error}")));
            }
            let known = Known::new(material.opened.clone(), material.catalog.clone(), began);
            work(queue, workers.threads, ready, known, |ask| responder.respond(ask));
        }
    }
}

/// Whoever asked for the generation may have gone; then nobody needs to know.
fn tell(ready: Ready, outcome: Result<Known, String>) {
    drop(ready.send(outcome));
}

/// The first question of every generation: it touches everything, so that the first client does not wait for checksums.
fn warm() -> Ask {
    Ask {
        input: Input::Example(0),
        method: None,
        k: 1,
        min_score: None,
        filter: Filter::default(),
        tokens: false,
        verbatim: false,
    }
}

fn work<F>(queue: &Queue<Job>, threads: usize, ready: Ready, known: Known, answer: F)
where
    F: Fn(&Ask) -> Result<Answer, RespondError> + Sync,
{
    tell(ready, Ok(known));
    let one = || {
        while let Some(job) = queue.pop() {
            // Nobody waits any more.
            if job.reply.is_closed() {
                continue;
            }
            let outcome = attend(&job, &answer);
            drop(job.reply.send(outcome));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.max(1) {
            scope.spawn(one);
        }
        one();
    });
}

/// One question. Nobody would wait for the end of one that is late already: it is told so, whoever sees the deadline first.
fn attend<F>(job: &Job, answer: &F) -> Result<Answer, Problem>
where
    F: Fn(&Ask) -> Result<Answer, RespondError>,
{
    if Instant::now() >= job.deadline {
        return Err(late());
    }
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| answer(&job.ask))) {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            if let RespondError::Engine(inner) = &error {
                report(inner);
            }
            Err(Problem::of(&error))
        }
        Err(_) => {
            tracing::error!("a worker met a broken invariant; it goes on with the next question");
            Err(Problem::fault())
        }
    }
}

fn report(error: &EngineError) {
    tracing::error!(error = %error, "an answer failed");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_question_that_is_late_in_the_queue_is_told_so_and_not_worked_on() {
        let job = |deadline| Job { ask: warm(), deadline, reply: oneshot::channel().0 };
        let never = |_: &Ask| panic!("nobody waits for this");
        assert_eq!(attend(&job(Instant::now()), &never).unwrap_err().status, 504);
        // With time left it is worked on, and a broken invariant is a fault of one answer.
        assert_eq!(attend(&job(Instant::now() + Duration::from_secs(60)), &never).unwrap_err().status, 500);
    }
}
