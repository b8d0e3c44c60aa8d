//! The rows of the attack catalogue's sections A to F, and where each has its cases.
use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use weft_loadtests::lab::testing::Test;

pub const TESTS: &[Test] = &[("every_row_has_a_case", every_row)];

/// Rows whose cases are elsewhere, with where.
const ELSEWHERE: &[(u32, &str)] =
    &[(30, "claims become fields only with RequestAuthentication, and are tested with it")];

const ROWS: std::ops::RangeInclusive<u32> = 1..=61;

fn every_row() -> Result<()> {
    let here: BTreeSet<u32> = [crate::semantics::rows(), crate::framing::rows()].concat().into_iter().collect();
    let elsewhere: BTreeSet<u32> = ELSEWHERE.iter().map(|(row, _)| *row).collect();
    let both: Vec<_> = here.intersection(&elsewhere).collect();
    ensure!(both.is_empty(), "rows with cases here need not be elsewhere: {both:?}");
    let missing: Vec<u32> = ROWS.filter(|row| !here.contains(row) && !elsewhere.contains(row)).collect();
    ensure!(missing.is_empty(), "rows without a case: {missing:?}");
    Ok(())
}
