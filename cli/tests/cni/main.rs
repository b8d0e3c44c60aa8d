//! What the CNI plugin and its agent promise: the real programs, on pods of the lab.
#![allow(missing_docs, unreachable_pub)]

mod agent;
mod api;
mod call;
mod capture;
mod cluster;
mod protocol;

use weft_loadtests::lab::testing::{self, Test};

pub const WEFT: &str = env!("CARGO_BIN_EXE_weft");

fn main() {
    // Before any thread: the lab runs this program again for its own duties.
    weft_loadtests::lab::init();
    let mut tests: Vec<Test> = [protocol::TESTS, agent::TESTS, capture::TESTS].concat();
    let (cluster, missing) = cluster::tests();
    tests.extend(cluster);
    testing::main_with_skipped(&tests, &missing);
}
