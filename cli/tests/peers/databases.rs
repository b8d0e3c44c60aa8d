//! Databases, whose protocols the sidecars do not know: PostgreSQL, Redis, and MariaDB, which speaks first.
use anyhow::{Context, Result, ensure};
use weft_loadtests::lab::Program;

use crate::bytes::self_signed;
use crate::fixture::{Case, HOST, NOBODY, Pair, folder, port, program, run};

pub const CASES: &[Case] = &[
    Case::new("pgbench_works_with_postgresql", &["postgres", "initdb", "pgbench", "psql"], postgres),
    Case::new("redis_benchmark_works_with_redis", &["redis-server", "redis-benchmark", "redis-cli"], redis),
    Case::new(
        "mariadb_which_speaks_first_greets_at_once_also_before_tls_of_its_own",
        &["mariadbd", "mariadb-install-db", "mariadb", "mariadb-slap"],
        mariadb,
    ),
];

fn postgres() -> Result<()> {
    let pair = Pair::start("postgres")?;
    let place = folder(&pair.server.pod)?;
    let data = format!("{place}/data");
    std::fs::create_dir(&data)?;
    let initdb = program("initdb")?.uid(NOBODY).args(["-D", &data, "-U", "shop"]);
    weft_loadtests::mesh::run_to_end(
        &pair.server.pod,
        initdb.args(["--auth=scram-sha-256", "--no-sync", "--locale=C"]).args(["--pwfile", &password(&place)?]),
    )?;
    std::fs::write(format!("{data}/pg_hba.conf"), "host all all all scram-sha-256\n")?;
    self_signed(&data)?;
    let server = program("postgres")?.uid(NOBODY).args(["-D", &data, "-p", "9000", "-c", "listen_addresses=*"]).args([
        "-c",
        "unix_socket_directories=",
        "-c",
        "fsync=off",
        "-c",
        "ssl=on",
        "-c",
        "ssl_cert_file=cert.pem",
        "-c",
        "ssl_key_file=key.pem",
    ]);
    let (seen, bytes) = (port::OTHER.to_string(), port::BYTES.to_string());
    let client = |name: &str, port: &str, tls: &str, arguments: &[&str]| {
        let client = program(name)?.env("PGPASSWORD", "secret").env("PGSSLMODE", tls).env("PGCONNECT_TIMEOUT", "10");
        let target = ["-h", HOST, "-p", port, "-U", "shop"];
        weft_loadtests::mesh::run_to_end(&pair.client.pod, client.args(target).args(arguments))
    };
    let _postgres =
        pair.serve(server, || client("psql", &seen, "disable", &["postgres", "-c", "select 1"]).map(drop))?;
    client("pgbench", &seen, "disable", &["-i", "-q", "-s", "1", "postgres"])?;
    for (port, tls, arguments) in [
        (&seen, "disable", &["-c", "8", "-j", "2", "-t", "50"][..]),
        (&seen, "require", &["-c", "4", "-j", "2", "-t", "25"]),
        // A connection for each transaction, and the extended protocol.
        (&bytes, "disable", &["-c", "4", "-t", "10", "-C", "-S"]),
        (&bytes, "prefer", &["-c", "2", "-t", "20", "-M", "prepared", "-S"]),
    ] {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["-n", "postgres"]).collect();
        let report = client("pgbench", port, tls, &arguments)?;
        ensure!(report.contains("number of failed transactions: 0 (0.000%)"), "{report}");
    }
    let rows = client(
        "psql",
        &seen,
        "require",
        &["postgres", "-Atc", "select repeat('x', 99) from generate_series(1, 100000)"],
    )?;
    ensure!(rows.len() == 100 * 100_000, "{}", rows.len());
    pair.carried_streams(60.0)
}

fn password(place: &str) -> Result<String> {
    let file = format!("{place}/password");
    std::fs::write(&file, "secret")?;
    Ok(file)
}

fn redis() -> Result<()> {
    let pair = Pair::start("redis")?;
    let server = program("redis-server")?.args(["--port", "9000", "--bind", "*", "-::*", "--protected-mode", "no"]);
    let server = server.args(["--save", "", "--dir", &folder(&pair.server.pod)?]);
    let cli = |arguments: &[&str]| {
        let target = ["-h", HOST, "-p", "90"];
        run(&pair.client.pod, "redis-cli", &[&target, arguments].concat())
    };
    let _redis = pair.serve(server, || {
        let answer = cli(&["ping"])?;
        ensure!(answer == "PONG\n", "{answer}");
        Ok(())
    })?;
    for port in ["90", "91"] {
        let benchmark = ["-h", HOST, "-p", port, "-n", "4000", "-c", "20", "--csv", "-t", "ping,set,get,lrange_100"];
        for pipelined in [&[][..], &["-P", "16"]] {
            let report = run(&pair.client.pod, "redis-benchmark", &[&benchmark, pipelined].concat())?;
            for test in ["PING_INLINE", "PING_MBULK", "SET", "GET", "LRANGE_100"] {
                ensure!(report.contains(&format!("\"{test}")), "no {test} in {report}");
            }
        }
    }
    cli(&["set", "large", &"v".repeat(100_000)])?;
    let large = cli(&["get", "large"])?;
    // Captured lines are cut at 64 KiB.
    ensure!(large.replace('\n', "") == "v".repeat(100_000), "{} bytes", large.len());
    pair.carried_streams(80.0)
}

fn mariadb() -> Result<()> {
    let pair = Pair::start("mariadb")?;
    let place = folder(&pair.server.pod)?;
    let data = format!("{place}/data");
    let install = program("mariadb-install-db")?.uid(NOBODY).args(["--no-defaults", "--skip-test-db"]);
    let install = install.arg(format!("--datadir={data}")).arg("--auth-root-authentication-method=normal");
    weft_loadtests::mesh::run_to_end(&pair.server.pod, install).context("mariadb-install-db")?;
    std::fs::write(
        format!("{place}/init.sql"),
        "create user shop@'%' identified by 'secret';\ngrant all on *.* to shop@'%';\n",
    )?;
    self_signed(&place)?;
    let server = mariadbd(&place, &data)?;
    let client = |port: u16, tls: &str, sql: &str| {
        let target = [
            "--no-defaults",
            "-h",
            HOST,
            "-P",
            &port.to_string(),
            "-ushop",
            "-psecret",
            tls,
            "-BN",
            "-e",
            sql,
            "mysql",
        ]
        .map(str::to_owned);
        run(&pair.client.pod, "mariadb", &target)
    };
    let _mariadb = pair.serve(server, || client(port::OTHER, "--skip-ssl", "select 1").map(drop))?;
    for port in [port::OTHER, port::BYTES] {
        for (tls, cipher) in [("--skip-ssl", false), ("--ssl", true)] {
            let answer = client(port, tls, "show status like 'Ssl_cipher'; select sum(seq) from seq_1_to_100000")?;
            ensure!(answer.contains("5000050000"), "{answer}");
            ensure!(answer.contains("TLS_") == cipher, "{tls}: {answer}");
        }
        let target = format!("--port={port}");
        let slap = ["--no-defaults", "-h", HOST, &target, "-ushop", "-psecret", "--auto-generate-sql"];
        let load = ["--concurrency=8", "--number-of-queries=400", "--auto-generate-sql-load-type=mixed"];
        let report = run(&pair.client.pod, "mariadb-slap", &[&slap[..], &load].concat())?;
        ensure!(report.contains("Number of clients running queries: 8"), "{report}");
    }
    pair.carried_streams(20.0)
}

fn mariadbd(place: &str, data: &str) -> Result<Program> {
    let server = program("mariadbd")?.uid(NOBODY).args([
        "--no-defaults",
        "--port=9000",
        "--bind-address=*",
        "--skip-name-resolve",
    ]);
    Ok(server.args([
        format!("--datadir={data}"),
        format!("--socket={place}/s"),
        format!("--pid-file={place}/pid"),
        format!("--init-file={place}/init.sql"),
        format!("--ssl-cert={place}/cert.pem"),
        format!("--ssl-key={place}/key.pem"),
    ]))
}
