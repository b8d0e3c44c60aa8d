//! Hostile input on real sockets: each row of the attack catalogue is a case here, sent byte by byte by a client without
//! a sidecar, to a real sidecar before an application that records what reaches it.
//!
//! Every case is followed by the invariants of [`fixture::Bench::judge`]: the sidecar lives, a good request is served,
//! the case's own counter moved by the number of attempts, nothing was allowed that should not be, and the application
//! saw what it should. `every_row_has_a_case` fails when a row is lost.
#![allow(missing_docs, unreachable_pub)]

mod admin;
mod capture;
mod coverage;
mod fixture;
mod frames;
mod framing;
mod handshakes;
mod limits;
mod recorder;
mod semantics;
mod upstreams;
mod wire;

use weft_loadtests::lab::testing::{self, Test};

fn main() {
    // Before any thread: the lab runs this program again for its own duties.
    weft_loadtests::lab::init();
    let groups = [
        coverage::TESTS,
        semantics::TESTS,
        framing::TESTS,
        frames::TESTS,
        upstreams::TESTS,
        handshakes::TESTS,
        capture::TESTS,
        admin::TESTS,
        limits::TESTS,
    ];
    let tests: Vec<Test> = groups.concat();
    testing::main(&tests);
}
