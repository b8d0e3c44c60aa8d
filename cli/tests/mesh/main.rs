//! The mesh's promises, on real sockets in the lab. One file a group of promises.
#![allow(missing_docs, unreachable_pub)]

mod balancing;
mod bytes;
mod explain;
mod fixture;
mod identity;
mod interception;
mod policy;
mod programs;
mod resilience;
mod routing;
mod streams;
mod telemetry;

use weft_loadtests::lab::testing::{self, Test};

fn main() {
    // Before any thread: the lab runs this program again for its own duties.
    weft_loadtests::lab::init();
    let groups = [
        interception::TESTS,
        bytes::TESTS,
        streams::TESTS,
        identity::TESTS,
        policy::TESTS,
        explain::TESTS,
        resilience::TESTS,
        balancing::TESTS,
        routing::TESTS,
        telemetry::TESTS,
    ];
    let mut tests: Vec<Test> = groups.concat();
    let (programs, missing) = programs::tests();
    tests.extend(programs);
    testing::main_with_skipped(&tests, &missing);
}
