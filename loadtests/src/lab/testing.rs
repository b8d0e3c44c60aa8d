//! Tests that run in the lab: the five lines of a test target with `harness = false`.
//!
//! ```no_run
//! use weft_loadtests::lab::{Lab, testing};
//!
//! fn a_lab_starts_empty() -> anyhow::Result<()> {
//!     let lab = Lab::new("empty")?;
//!     anyhow::ensure!(std::fs::read_dir(lab.directory())?.count() == 3);
//!     Ok(())
//! }
//!
//! fn main() {
//!     testing::main(&[("a_lab_starts_empty", a_lab_starts_empty)]);
//! }
//! ```
//!
//! The tests run in parallel, in threads of one process that has entered the lab once. Where the lab is not to be had,
//! every test is reported as ignored, with the reason in its name; with `WEFT_REQUIRE_LAB=1` in the environment it fails
//! instead.

use super::{Options, Unavailable, available, enter, init};
use libtest_mimic::{Arguments, Trial};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A test: its name, and what it does. It fails with an error or a panic.
pub type Test = (&'static str, fn() -> anyhow::Result<()>);

/// Enters the lab, runs the tests that the command line asks for, and exits. To be called first in `main`.
pub fn main(tests: &[Test]) -> ! {
    main_with_skipped(tests, &[])
}

/// As [`main`]; `skipped` are tests that cannot run here, each with the reason in its name, and are reported as ignored.
pub fn main_with_skipped(tests: &[Test], skipped: &[String]) -> ! {
    init();
    let arguments = Arguments::from_args();
    // A list needs the names only, and they depend on whether the lab is to be had.
    let lab = if arguments.list { available() } else { enter(Options::default()).map(drop) };
    run(&arguments, tests, skipped, lab)
}

/// As [`main`], but runs the tests outside, for tests that start programs which enter.
pub fn main_outside(tests: &[Test]) -> ! {
    init();
    run(&Arguments::from_args(), tests, &[], available())
}

/// Tests hold both ends of many connections in one process; the usual soft limit of 1,024 is too low for that.
fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // With a lower limit the tests that need more say so by failing.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn run(arguments: &Arguments, tests: &[Test], skipped: &[String], lab: Result<(), Unavailable>) -> ! {
    raise_open_files();
    let required = std::env::var("WEFT_REQUIRE_LAB").is_ok_and(|value| value == "1");
    let there = tests.iter().map(|test| trial(test, lab.as_ref().err(), required));
    let missing = skipped.iter().map(|name| Trial::test(name, || Ok(())).with_ignored_flag(true));
    libtest_mimic::run(arguments, there.chain(missing).collect()).exit()
}

fn trial(&(name, test): &Test, missing: Option<&Unavailable>, required: bool) -> Trial {
    match missing {
        None => Trial::test(name, move || test().map_err(|error| format!("{error:?}").into())),
        Some(why) if required => {
            let why = why.to_string();
            Trial::test(name, move || Err(format!("WEFT_REQUIRE_LAB=1, but there is no lab: {why}").into()))
        }
        Some(why) => Trial::test(format!("{name} (skipped: {why})"), || Ok(())).with_ignored_flag(true),
    }
}
