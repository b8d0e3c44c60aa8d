//! The rows of the attack catalogue's sections A to F, and where each has its cases.
use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use weft_loadtests::lab::testing::Test;

pub const TESTS: &[Test] = &[("every_row_has_a_case", every_row)];

/// Rows whose cases are elsewhere, with where.
/// Rows whose cases are elsewhere, with where.
const ELSEWHERE: &[(u32, &str)] = &[
    (30, "claims become fields only with RequestAuthentication, and are tested with it"),
    (84, "certs/tests/promises/rules.rs, and cli/tests/mesh/identity.rs on the wire"),
    (85, "certs/tests/promises/catalogue.rs: every rule of the SPIFFE standard, on both sides"),
    (86, "cli/tests/mesh/identity.rs: a_server_with_a_bad_certificate_gets_no_byte_of_the_request"),
    (87, "cli/tests/mesh/identity.rs: a_destination_of_the_mesh_that_stops_offering_tls_is_never_reached_in_plaintext"),
    (93, "certs/tests/promises/catalogue.rs: long chains, loops of cross-signed certificates, large keys"),
    (94, "certs/tests/promises/catalogue.rs: weak hashes and keys"),
    (95, "certs/tests/promises/bundle.rs; there are no CRLs"),
    (97, "cli/tests/mesh/interception.rs: an_application_that_calls_itself_reaches_itself_once"),
    (98, "proxy/src/stage/accept.rs: only_an_address_of_this_host_is_local"),
    (102, "proxy/tests/redirect.rs: what the rules count and do not touch"),
];

const ROWS: std::ops::RangeInclusive<u32> = 1..=106;

fn every_row() -> Result<()> {
    let here: BTreeSet<u32> = [
        crate::semantics::rows(),
        crate::framing::rows(),
        crate::frames::rows(),
        crate::upstreams::rows(),
        crate::handshakes::rows(),
        crate::capture::rows(),
        crate::admin::rows(),
    ]
    .concat()
    .into_iter()
    .collect();
    let elsewhere: BTreeSet<u32> = ELSEWHERE.iter().map(|(row, _)| *row).collect();
    let both: Vec<_> = here.intersection(&elsewhere).collect();
    ensure!(both.is_empty(), "rows with cases here need not be elsewhere: {both:?}");
    let missing: Vec<u32> = ROWS.filter(|row| !here.contains(row) && !elsewhere.contains(row)).collect();
    ensure!(missing.is_empty(), "rows without a case: {missing:?}");
    Ok(())
}
