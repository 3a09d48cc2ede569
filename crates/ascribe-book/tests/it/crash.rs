//! kill -9 at any moment: what was acknowledged is in the book, whole batches or none, and the rest can be sent again.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use ascribe_book::{Book, Entry, Outcome};

use crate::fixture::{NOON, Place, line, response, table};

/// Names the book of a child; without it the child's test does nothing.
const CHILD: &str = "ASCRIBE_BOOK_CRASH";
const BATCH: usize = 40;
const KILLS: u64 = 12;

fn batch(book: &mut Book, from: usize) -> Vec<Entry> {
    let table = table(book);
    let one = |n: usize| response(&table, &format!("req-{n}"), NOON, "0.01 USD", &[line(0, n as u64 + 1), line(1, 7)]);
    (from..from + BATCH).map(one).collect()
}

/// The child: posts batch after batch, and says so after each.
#[test]
fn child() {
    let Ok(address) = std::env::var(CHILD) else { return };
    let mut book = Book::open(&address).unwrap();
    let mut from = book.head().unwrap().0 as usize;
    for _ in 0..100_000 {
        let entries = batch(&mut book, from);
        book.post(&entries).unwrap();
        from += BATCH;
        println!("\nposted {from}");
    }
}

#[test]
fn a_killed_writer_loses_nothing_that_it_acknowledged() {
    let place = Place::sqlite();
    table(&mut place.open());
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["crash::child", "--exact", "--nocapture"])
            .env(CHILD, &place.address)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let posted =
            |line: std::io::Result<String>| line.unwrap().strip_prefix("posted ").map(|n| n.parse::<u64>().unwrap());
        let first = lines.find_map(posted).unwrap();
        // Another moment each time; the killer does not wait for a border between batches.
        std::thread::sleep(Duration::from_micros(1_700 * kill + 137 * kill * kill));
        child.kill().unwrap();
        child.wait().unwrap();
        let acknowledged = lines.filter_map(posted).last().unwrap_or(first);
        let mut book = place.open();
        let found = book.verify().unwrap().entries;
        assert!(found >= acknowledged, "kill {kill}: {acknowledged} were acknowledged, {found} are there");
        assert_eq!(found % BATCH as u64, 0, "kill {kill}: a batch was split");
        // Whoever was not told whether the last batch is in sends it again.
        let entries = batch(&mut book, acknowledged as usize - BATCH);
        assert_eq!(book.post(&entries).unwrap(), [Outcome::AlreadyThere; BATCH]);
    }
}
