//! The mesh's promises, on real sockets in the lab. One file a promise.
#![allow(missing_docs, unreachable_pub)]

mod bytes;
mod fixture;
mod interception;

use weft_loadtests::lab::testing::{self, Test};

fn main() {
    let mut tests: Vec<Test> = Vec::new();
    tests.extend(interception::TESTS);
    tests.extend(bytes::TESTS);
    testing::main(&tests);
}
