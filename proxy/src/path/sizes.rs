//! How large the state of connections and requests is. Sizes are pinned because nobody sees them grow: one variable that
//! lives across an `.await` too many costs every idle connection, and every request a copy.
use std::rc::Rc;

use http::Request;
use hyper::body::Incoming;

use super::record::{Record, ResponseBody};
use super::{inbound, outbound};
use crate::telemetry::Ends;

/// What `make` would return takes, in bytes.
fn of_future<A, B, C, F>(_make: impl Fn(A, B, C) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn the_state_of_connections_and_requests_stays_small() {
    let request_in = of_future::<_, Request<Incoming>, Rc<Ends>, _>(inbound::Connection::request);
    let request_out = of_future::<_, Request<Incoming>, Rc<Ends>, _>(outbound::Connection::request);
    let rows = [
        ("inbound connection", of_future(inbound::handle), 7_000),
        ("outbound connection", of_future(outbound::handle), 7_500),
        ("inbound request", request_in, 5_400),
        ("outbound request", request_out, 5_400),
        ("record of a request", size_of::<Record>(), 450),
        ("answer's body", size_of::<ResponseBody>(), 400),
    ];
    let grown: Vec<String> = rows
        .iter()
        .filter(|(_, size, most)| size > most)
        .map(|(what, size, most)| format!("{what}: {size} bytes, pinned at {most}"))
        .collect();
    assert!(grown.is_empty(), "{}", grown.join("\n"));
}
