//! More than it can do: answers or refusals at once, nothing else, in bounded memory.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::finished;
use crate::server::Server;

#[test]
fn overload_is_refused_at_once_and_memory_stays_where_it_was() {
    let settings = [("queue_depth", "4"), ("workers", "1"), ("max_in_flight", "24")];
    let tiny = finished().tiny.copy_with_run();
    let server = Server::start(&tiny, &settings);
    (0..20).for_each(|i| assert_eq!(server.example(i % 12, false).status, 200));
    let before = server.rss_kib();
    let (ok, shed, ended) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let (slowest, slowest_refused) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..48)
            .map(|_| {
                scope.spawn(|| {
                    let (mut slowest, mut slowest_refused) = (Duration::ZERO, Duration::ZERO);
                    while !ended.load(Ordering::SeqCst) {
                        let began = Instant::now();
                        let reply = server.post("/v1/attributions", &json!({ "example": 3, "k": 2 }));
                        match reply.status {
                            200 => ok.fetch_add(1, Ordering::SeqCst),
                            503 => {
                                assert!(reply.header("retry-after").is_some());
                                slowest_refused = slowest_refused.max(began.elapsed());
                                shed.fetch_add(1, Ordering::SeqCst)
                            }
                            other => panic!("{other}: {}", reply.text),
                        };
                        slowest = slowest.max(began.elapsed());
                    }
                    (slowest, slowest_refused)
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(4));
        ended.store(true, Ordering::SeqCst);
        let times: Vec<(Duration, Duration)> = clients.into_iter().map(|c| c.join().unwrap()).collect();
        (times.iter().map(|t| t.0).max().unwrap(), times.iter().map(|t| t.1).max().unwrap())
    });
    let (ok, shed) = (ok.into_inner(), shed.into_inner());
    assert!(ok > 10 && shed > 10, "{ok} answered, {shed} refused");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    // At once, though 48 clients share the machine with the server.
    assert!(slowest_refused < Duration::from_secs(1), "{slowest_refused:?}");
    let grown = server.rss_kib().saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB more than before");
    assert_eq!(server.example(0, false).status, 200);
}
