//! Programs of others, unmodified, on both sides of the sidecars. One file a protocol or program.
//!
//! Every test makes two pods with a sidecar each and checks that what it did was carried by mutual TLS. A test whose
//! programs are not on this machine says so and is skipped; see [`fixture::find`] for where they are looked for.
#![allow(missing_docs, unreachable_pub)]

mod answers;
mod bytes;
mod curl;
mod databases;
mod fixture;
mod grpc;
mod haproxy;
mod http1;
mod http2;
mod nginx;
mod websocket;

use fixture::Case;
use weft_loadtests::lab::testing::{self, Test};

fn main() {
    // Before any thread: the lab runs this program again for its own duties.
    weft_loadtests::lab::init();
    let groups: [&[Case]; _] = [
        curl::CASES,
        http1::CASES,
        http2::CASES,
        nginx::CASES,
        haproxy::CASES,
        databases::CASES,
        bytes::CASES,
        grpc::CASES,
        websocket::CASES,
    ];
    let (mut tests, mut skipped): (Vec<Test>, Vec<String>) = Default::default();
    for case in groups.concat() {
        match case.missing() {
            None => tests.push((case.name, case.run)),
            Some(program) => skipped.push(format!("{} (skipped: {program} is not installed)", case.name)),
        }
    }
    testing::main_with_skipped(&tests, &skipped);
}
