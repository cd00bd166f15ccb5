//! The load against small servers on this host's loopback: nothing is tracked or limited here.
//! Times are generous, for tests share their CPUs.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Answers with 200 until the client has had enough; counts connections.
fn server(answer: &'static str) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&connections);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::Relaxed);
            thread::spawn(move || serve(stream, answer));
        }
    });
    (address, connections)
}

fn serve(mut stream: TcpStream, answer: &str) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut last = false;
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            last |= line.trim() == "Connection: close";
            if line.trim().is_empty() {
                break;
            }
        }
        stream.write_all(answer.as_bytes()).ok()?;
        if last {
            return None;
        }
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

#[test]
fn each_request_has_a_connection_of_its_own_and_begins_when_due() {
    let (to, connections) = server(OK);
    let report = Load::new(to, 200.0, 2.0).run().unwrap();
    assert_eq!((report.offered, report.started, report.ok), (400, 400, 400), "{report:?}");
    assert_eq!((report.connections, connections.load(Ordering::Relaxed)), (400, 400));
    assert_eq!(report.per_second[0].offered, 200);
    assert!(report.latency_ms.p50 >= report.start_lag_ms.p50);
}

#[test]
fn a_connection_carries_as_many_requests_as_it_is_told() {
    let (to, connections) = server(OK);
    let load = Load { per_connection: 10, ..Load::new(to, 100.0, 2.0) };
    let report = load.run().unwrap();
    assert_eq!((report.ok, report.all_failed()), (200, 0), "{report:?}");
    let connections = connections.load(Ordering::Relaxed);
    assert_eq!(connections, report.connections);
    assert!((20..60).contains(&connections), "{connections} connections for 200 requests");
}

#[test]
fn requests_go_on_beginning_while_nobody_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let load = Load { timeout: Duration::from_millis(1500), ..Load::new(to, 50.0, 2.0) };
    let report = load.run().unwrap();
    assert_eq!((report.started, report.ok), (100, 0));
    assert_eq!(report.failed, [("response_timeout".to_owned(), 100)].into());
    assert!(report.most_in_flight >= 60, "{report:?}");
}

#[test]
fn failures_have_reasons() {
    let (busy, _) = server("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    let report = Load::new(busy, 50.0, 0.2).run().unwrap();
    assert_eq!(report.failed, [("http_503".to_owned(), 10)].into());
    let (rude, _) = server("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi");
    assert_eq!(Load::new(rude, 50.0, 0.2).run().unwrap().failed, [("closed_early".to_owned(), 10)].into());
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(
        Load::new(nobody, 50.0, 0.2).run().unwrap().failed,
        [("connect_refused".to_owned(), 10)].into()
    );
}

#[test]
fn a_load_that_made_up_for_a_delay_shows_its_fastest_window() {
    let begun = Begun::default();
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    // Ten a second, but for those of the third second, which came with those of the fourth.
    for index in 0..60 {
        let due = index * 100;
        begun.note(at(if (2000..3000).contains(&due) { 3050 } else { due }));
    }
    let (slowest, fastest) = begun.rates(start, at(6000), Duration::from_secs(2));
    assert_eq!(fastest, 15.0);
    assert_eq!(slowest, 5.0);
    assert_eq!(begun.rates(at(4000), at(6000), Duration::from_secs(1)), (10.0, 10.0));
}
