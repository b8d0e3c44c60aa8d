//! The state directory: made once, never repaired, never left half written.
mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use weft_certs::{CertificateAuthority, TrustDomain};
use weft_control_plane::ca::store::{Store, StoreError, given_authority};
use weft_control_plane::config::IssuerFiles;

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").expect("valid")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o777
}

fn open() -> (TempDir, PathBuf, Store) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let state = directory.path().join("weft/state");
    let store = Store::open_or_create(&state).expect("made");
    (directory, state, store)
}

fn load(store: &Store) -> Result<CertificateAuthority, StoreError> {
    store.self_signed_authority(&domain(), SystemTime::now())
}

#[test]
fn keys_are_made_once_and_only_their_owner_reads_them() {
    let (_directory, state, store) = open();
    let authority = load(&store).expect("made");
    let token = store.token_key(&domain()).expect("made");
    store.write_trust_bundle(&authority.trust_bundle().to_pem()).expect("written");
    assert_eq!(
        [mode(&state), mode(&state.join("ca.pem")), mode(&state.join("token.key")), mode(&store.trust_bundle_path())],
        [0o700, 0o600, 0o600, 0o644]
    );
    let again = Store::open(&state).expect("opened");
    assert_eq!(load(&again).expect("loaded").trust_bundle(), authority.trust_bundle());
    let made = token.create("shop", "orders", Duration::from_secs(60), SystemTime::now()).expect("a token");
    again.token_key(&domain()).expect("loaded").check(&made, SystemTime::now()).expect("the same key");
    assert_eq!(fs::read_dir(&state).expect("listed").count(), 3, "nothing is left behind");
}

#[test]
fn two_that_start_at_once_use_the_same_keys() {
    let (_directory, _, store) = open();
    let start = std::sync::Barrier::new(4);
    let bundles: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    store.token_key(&domain()).expect("a key");
                    load(&store).expect("loaded").trust_bundle()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(bundles.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn keys_that_others_can_read_are_refused_with_the_command_that_helps() {
    for (name, wanted) in [("ca.pem", "chmod 600 "), ("token.key", "chmod 600 "), ("", "chmod 700 ")] {
        let (_directory, state, store) = open();
        load(&store).expect("made");
        store.token_key(&domain()).expect("made");
        let path = if name.is_empty() { state.clone() } else { state.join(name) };
        let was = mode(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(was | 0o040)).expect("changed");
        let fault = Store::open(&state)
            .and_then(|store| Ok((load(&store)?, store.token_key(&domain())?)))
            .err()
            .unwrap_or_else(|| panic!("{name} was accepted"))
            .to_string();
        assert!(fault.contains(&format!("{wanted}{}", path.display())), "{fault}");
    }
}

#[test]
fn a_damaged_key_is_an_error_that_names_the_file_and_is_left_alone() {
    type Damage = fn(&str) -> String;
    let other =
        CertificateAuthority::self_signed(&domain(), Duration::from_secs(3600), SystemTime::now()).expect("made");
    let other_key = other.key_pem();
    let damages: [(&str, &str, Damage); 5] = [
        ("ca.pem", "emptied", |_| String::new()),
        ("ca.pem", "cut in half", |text| text[..text.len() / 2].to_owned()),
        ("ca.pem", "without its certificate", |text| {
            text.split("-----BEGIN CERTIFICATE").next().expect("one").to_owned()
        }),
        ("token.key", "emptied", |_| String::new()),
        ("token.key", "cut in half", |text| text[..text.len() / 2].to_owned()),
    ];
    let check = |name: &str, case: &str, damage: &dyn Fn(&str) -> String| {
        let (_directory, state, store) = open();
        load(&store).expect("made");
        store.token_key(&domain()).expect("made");
        let path = state.join(name);
        let damaged = damage(&fs::read_to_string(&path).expect("readable"));
        fs::write(&path, &damaged).expect("written");
        let result = if name == "ca.pem" { load(&store).map(drop) } else { store.token_key(&domain()).map(drop) };
        let fault = result.expect_err(case).to_string();
        assert!(fault.contains(&path.display().to_string()) && fault.contains("restore it"), "{case}: {fault}");
        assert_eq!(fs::read_to_string(&path).expect("readable"), damaged, "{case}: it was changed");
    };
    for (name, case, damage) in damages {
        check(name, case, &damage);
    }
    check("ca.pem", "with the key of another", &|text| {
        let certificate = text.find("-----BEGIN CERTIFICATE").expect("there");
        format!("{other_key}{}", &text[certificate..])
    });
}

#[test]
fn another_trust_domain_is_refused_by_name() {
    let (_directory, _, store) = open();
    store.token_key(&domain()).expect("made");
    load(&store).expect("made");
    let other = TrustDomain::parse("other.test").expect("valid");
    let fault = store.token_key(&other).expect_err("refused").to_string();
    assert!(fault.contains("--trust-domain cluster.local"), "{fault}");
    assert!(store.self_signed_authority(&other, SystemTime::now()).is_err());
}

#[test]
fn a_token_needs_the_state_of_a_control_plane() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let missing = Store::open(&directory.path().join("nowhere")).expect_err("missing").to_string();
    assert!(missing.contains("nowhere") && missing.contains("--state"), "{missing}");
    let empty = Store::open_or_create(&directory.path().join("empty"))
        .expect("made")
        .existing_token_key()
        .expect_err("missing")
        .to_string();
    assert!(empty.contains("token.key") && empty.contains("start the control plane"), "{empty}");
}

#[test]
fn a_state_that_cannot_be_written_still_serves_what_it_holds() {
    let (_directory, state, store) = open();
    let authority = load(&store).expect("made");
    store.token_key(&domain()).expect("made");
    store.write_trust_bundle(&authority.trust_bundle().to_pem()).expect("written");
    // A directory in place of the file fails for root too, as a full disk does.
    let old = fs::read(store.trust_bundle_path()).expect("readable");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o500)).expect("changed");
    assert_eq!(load(&store).expect("loaded").trust_bundle(), authority.trust_bundle());
    store.token_key(&domain()).expect("loaded");
    store.write_trust_bundle(&authority.trust_bundle().to_pem()).expect("nothing to write");
    if !nix::unistd::geteuid().is_root() {
        let fault = store.write_trust_bundle("other").expect_err("not writable").to_string();
        assert!(fault.contains("trust-bundle.pem"), "{fault}");
        assert_eq!(fs::read(store.trust_bundle_path()).expect("readable"), old);
    }
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).expect("changed");
}

#[test]
fn a_given_issuer_must_be_a_pair_and_its_key_private() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (certificates, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
    let files = IssuerFiles { certificates: certificates.clone(), key: key.clone(), roots: None };
    let make =
        || CertificateAuthority::self_signed(&domain(), Duration::from_secs(3600), SystemTime::now()).expect("made");
    let (one, other) = (make(), make());
    let given = || given_authority(&files, &domain(), SystemTime::now());
    fs::write(&certificates, one.certificates_pem()).expect("written");
    let missing = given().expect_err("no key").to_string();
    assert!(missing.contains("tls.key") && missing.contains("--issuer-key"), "{missing}");

    fs::write(&key, one.key_pem()).expect("written");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("changed");
    let readable = given().expect_err("readable by others").to_string();
    assert!(readable.contains("chmod 600"), "{readable}");

    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("changed");
    assert_eq!(given().expect("loaded").trust_bundle(), one.trust_bundle());

    fs::write(&key, other.key_pem()).expect("written");
    let mismatch = given().expect_err("no pair").to_string();
    assert!(mismatch.contains("tls.crt") && mismatch.contains("tls.key"), "{mismatch}");
}
