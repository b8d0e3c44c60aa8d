//! What Weft promises on Kubernetes, as far as a real API server can show it: there is no node, so pods do not run. The
//! sidecars here do: each proves to be a pod by a real token of that pod.
//!
//! Skipped where no API server is to be had: see `weft_loadtests::kubernetes`.
#![allow(missing_docs, unreachable_pub)]

mod chart;
mod cli;
mod fixture;
mod hostile;
mod injected;
mod mesh;
mod operator;
mod rights;
mod routes;
mod scale;
mod status;
mod webhooks;

use libtest_mimic::{Arguments, Trial};
use weft_loadtests::kubernetes::assets;
use weft_loadtests::lab::testing::Test;

fn main() {
    weft_certs::install_crypto_provider();
    let missing = assets().err();
    let no_helm = missing.clone().or_else(|| chart::helm().err());
    let trial = |(name, test): Test, missing: Option<&String>| match missing {
        None => Trial::test(name, move || test().map_err(|error| format!("{error:?}").into())),
        Some(why) => Trial::test(format!("{name} (skipped: {why})"), || Ok(())).with_ignored_flag(true),
    };
    let tests = [
        cli::TESTS,
        hostile::TESTS,
        injected::TESTS,
        mesh::TESTS,
        operator::TESTS,
        scale::TESTS,
        status::TESTS,
        webhooks::TESTS,
    ];
    let tests = tests.concat().into_iter().map(|test| trial(test, missing.as_ref()));
    let with_helm = [chart::TESTS, rights::TESTS].concat().into_iter().map(|test| trial(test, no_helm.as_ref()));
    let no_routes = missing.clone().or_else(|| routes::definitions().err());
    let with_routes = routes::TESTS.iter().map(|test| trial(*test, no_routes.as_ref()));
    let trials = tests.chain(with_helm).chain(with_routes).collect();
    let mut arguments = Arguments::from_args();
    // An API server needs a processor of its own.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    libtest_mimic::run(&arguments, trials).exit();
}
