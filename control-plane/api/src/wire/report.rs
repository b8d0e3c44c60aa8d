//! A replica's report, in parts that each fit into one message.
use super::{WireError, decode, proto};
use crate::report::{PolicyName, Report, SidecarReport};
use crate::resource::{NamespacedName, is_dns_label, is_dns_subdomain};

/// Rows of one part: with the longest texts it stays within [`super::MAX_UPDATE_BYTES`].
const ROWS: usize = 1_000;
/// Sidecars and policies of one report.
const MAX_ROWS: usize = 200_000;
/// Bytes of the reason why a sidecar refused an update, and of a kind's name.
const MAX_ERROR_BYTES: usize = 4 << 10;
const MAX_KIND_BYTES: usize = 64;

/// The parts of `report`: at least one. `known`: the revision that the caller has.
pub fn encode_report(report: &Report, known: u64) -> Vec<proto::ReportPart> {
    let part = || proto::ReportPart { revision: report.revision, ..Default::default() };
    if known == report.revision {
        return vec![proto::ReportPart { unchanged: true, ..part() }];
    }
    let sidecars: Vec<_> = report.sidecars.iter().map(|(name, row)| sidecar(name, row)).collect();
    let policies: Vec<_> = report.policies.iter().map(|(name, fingerprint)| policy(name, *fingerprint)).collect();
    let mut parts = vec![part()];
    parts.extend(sidecars.chunks(ROWS).map(|rows| proto::ReportPart { sidecars: rows.to_vec(), ..part() }));
    parts.extend(policies.chunks(ROWS).map(|rows| proto::ReportPart { policies: rows.to_vec(), ..part() }));
    parts
}

/// Adds `part` to what came of the report so far. False: there is no report to read, what the caller has is the latest.
///
/// # Errors
/// The field at fault. Nothing of the report is to be used then.
pub fn decode_report_part(report: &mut Report, part: proto::ReportPart) -> Result<bool, WireError> {
    if part.revision == 0 || (report.revision != 0 && report.revision != part.revision) {
        return Err(WireError::new("revision", "not that of one report"));
    }
    report.revision = part.revision;
    if part.unchanged {
        return Ok(false);
    }
    decode::bounded("sidecars", report.sidecars.len() + part.sidecars.len(), MAX_ROWS)?;
    decode::bounded("policies", report.policies.len() + part.policies.len(), MAX_ROWS)?;
    for (index, message) in part.sidecars.into_iter().enumerate() {
        let name = named(&message.namespace, &message.workload, || format!("sidecars[{index}].workload"))?;
        if message.error.len() > MAX_ERROR_BYTES {
            return Err(WireError::new(
                format!("sidecars[{index}].error"),
                format!("more than {MAX_ERROR_BYTES} bytes"),
            ));
        }
        let row = SidecarReport {
            connected: message.connected,
            draining: message.draining,
            current: message.current,
            version: message.version,
            confirmed: message.confirmed,
            certificate_expiry: message.certificate_expiry,
            disconnected_since: message.disconnected_since,
            error: Some(message.error).filter(|error| !error.is_empty()),
        };
        report.sidecars.insert(name, row);
    }
    for (index, message) in part.policies.into_iter().enumerate() {
        let field = || format!("policies[{index}]");
        let name = named(&message.namespace, &message.name, field)?;
        if !(1..=MAX_KIND_BYTES).contains(&message.kind.len())
            || !message.kind.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            return Err(WireError::new(format!("{}.kind", field()), "not the name of a kind"));
        }
        report.policies.insert(PolicyName { kind: message.kind, name }, message.fingerprint);
    }
    Ok(true)
}

fn named(namespace: &str, name: &str, field: impl Fn() -> String) -> Result<NamespacedName, WireError> {
    if is_dns_label(namespace) && is_dns_subdomain(name) {
        return Ok(NamespacedName::new(namespace, name));
    }
    Err(WireError::new(field(), "not a valid namespace and name"))
}

fn sidecar(name: &NamespacedName, row: &SidecarReport) -> proto::SidecarRow {
    proto::SidecarRow {
        namespace: name.namespace.clone(),
        workload: name.name.clone(),
        connected: row.connected,
        draining: row.draining,
        current: row.current,
        version: row.version,
        confirmed: row.confirmed,
        certificate_expiry: row.certificate_expiry,
        disconnected_since: row.disconnected_since,
        error: row.error.clone().unwrap_or_default(),
    }
}

fn policy(PolicyName { kind, name }: &PolicyName, fingerprint: u64) -> proto::PolicyRow {
    proto::PolicyRow { kind: kind.clone(), namespace: name.namespace.clone(), name: name.name.clone(), fingerprint }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(index: usize) -> NamespacedName {
        NamespacedName::new("shop", format!("orders-{index}"))
    }

    fn report(rows: usize) -> Report {
        let sidecar = |index| SidecarReport {
            connected: index % 2 == 0,
            current: true,
            version: Some(7),
            confirmed: (index % 2 == 0).then_some(7),
            certificate_expiry: 1_800_000_000,
            disconnected_since: (index % 2 == 1).then_some(3),
            error: (index % 3 == 0).then(|| "no".to_owned()),
            ..Default::default()
        };
        let policy = |index| (PolicyName { kind: "AuthorizationPolicy".to_owned(), name: name(index) }, index as u64);
        Report {
            revision: 9,
            sidecars: (0..rows).map(|index| (name(index), sidecar(index))).collect(),
            policies: (0..rows).map(policy).collect(),
        }
    }

    #[test]
    fn a_report_arrives_as_it_was_sent_in_however_many_parts() {
        for (rows, parts) in [(0, 1), (1, 3), (ROWS, 3), (ROWS + 1, 5)] {
            let (sent, mut received) = (report(rows), Report::default());
            let encoded = encode_report(&sent, 8);
            assert_eq!(encoded.len(), parts, "{rows} rows");
            for part in encoded {
                assert_eq!(decode_report_part(&mut received, part), Ok(true));
            }
            assert_eq!(received, sent, "{rows} rows");
        }
    }

    #[test]
    fn who_has_the_latest_report_is_told_so_and_nothing_else() {
        let parts = encode_report(&report(5), 9);
        assert_eq!(parts, [proto::ReportPart { revision: 9, unchanged: true, ..Default::default() }]);
        assert_eq!(decode_report_part(&mut Report::default(), parts[0].clone()), Ok(false));
    }

    #[test]
    fn a_part_with_a_fault_is_refused() {
        let sidecar = |change: fn(&mut proto::SidecarRow)| {
            let mut row = super::sidecar(&name(0), &SidecarReport::default());
            change(&mut row);
            proto::ReportPart { revision: 9, sidecars: vec![row], ..Default::default() }
        };
        let policy = |change: fn(&mut proto::PolicyRow)| {
            let mut row = super::policy(&PolicyName { kind: "X".to_owned(), name: name(0) }, 1);
            change(&mut row);
            proto::ReportPart { revision: 9, policies: vec![row], ..Default::default() }
        };
        let bare = |revision| proto::ReportPart { revision, ..Default::default() };
        let many = proto::ReportPart { sidecars: vec![Default::default(); MAX_ROWS + 1], ..bare(9) };
        for (case, part, field) in [
            ("another report", bare(8), "revision"),
            ("no revision", bare(0), "revision"),
            ("too many rows", many, "sidecars"),
            ("a bad namespace", sidecar(|row| row.namespace = "a/b".to_owned()), "sidecars[0].workload"),
            ("no name", sidecar(|row| row.workload.clear()), "sidecars[0].workload"),
            ("a long error", sidecar(|row| row.error = "x".repeat(MAX_ERROR_BYTES + 1)), "sidecars[0].error"),
            ("no policy name", policy(|row| row.name.clear()), "policies[0]"),
            ("no kind", policy(|row| row.kind.clear()), "policies[0].kind"),
            ("a bad kind", policy(|row| row.kind = "a b".to_owned()), "policies[0].kind"),
        ] {
            let mut begun = Report { revision: 9, ..Default::default() };
            let fault = decode_report_part(&mut begun, part).expect_err(case);
            assert_eq!(fault.field, field, "{case}");
        }
    }
}
