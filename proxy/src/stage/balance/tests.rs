//! What the balancer promises, with a clock of the test's own.
use std::cell::Cell;

use weft_api::workload::{ProtocolHint, ServicePort};

use super::health::RAMP;
use super::*;

const MS: Duration = Duration::from_millis(1);

fn service(endpoints: u16, traffic: Traffic) -> Arc<Service> {
    let endpoint = |number: u16| Endpoint {
        address: ([10, 0, 0, 1], 8_000 + number).into(),
        workload: format!("w{number}"),
        identity: None,
    };
    let port = ServicePort {
        port: 80,
        protocol: ProtocolHint::Http1,
        endpoints: (0..endpoints).map(endpoint).collect(),
        routes: Vec::new(),
    };
    Arc::new(Service { name: NamespacedName::new("shop", "web"), addresses: Vec::new(), ports: vec![port], traffic })
}

fn balancer() -> Balancer {
    Balancer::new(Arc::default(), 1)
}

fn destination(endpoints: u16) -> Rc<Destination> {
    balancer().service(&service(endpoints, Traffic::DEFAULT), 0, None)
}

fn choose(to: &Rc<Destination>, now: Instant) -> Chosen {
    to.choose(&Tried::default(), now).expect("there are endpoints")
}

fn port(chosen: &Chosen) -> u16 {
    chosen.target.endpoint.address.port()
}

/// Requests one after another, each answered by `serve` (whether and how fast); returns how many each endpoint got.
fn run(
    to: &Rc<Destination>,
    now: &mut Instant,
    requests: usize,
    every: Duration,
    serve: impl Fn(u16) -> (bool, Duration),
) -> HashMap<u16, usize> {
    let mut got = HashMap::new();
    for _ in 0..requests {
        let mut chosen = choose(to, *now);
        *got.entry(port(&chosen)).or_default() += 1;
        let (good, latency) = serve(port(&chosen));
        if good {
            chosen.succeeded(*now + latency, latency)
        } else {
            chosen.failed(*now + latency)
        };
        *now += every;
    }
    got
}

#[test]
fn load_spreads_over_endpoints_of_whom_nothing_is_known() {
    let (to, now) = (destination(4), Instant::now());
    let held: Vec<Chosen> = (0..400).map(|_| choose(&to, now)).collect();
    for number in 8_000..8_004 {
        let share = held.iter().filter(|chosen| port(chosen) == number).count();
        assert!((90..=110).contains(&share), "{share}");
    }
}

#[test]
fn of_two_the_one_where_a_request_waits_less_is_chosen() {
    let (to, now) = (destination(2), Instant::now());
    for (number, latency) in [(8_000, 10 * MS), (8_001, 40 * MS)] {
        let members = to.members.borrow().clone();
        let target = members.iter().find(|target| target.endpoint.address.port() == number).expect("there");
        let mut chosen = to.begin(target, now);
        chosen.succeeded(now, latency);
    }
    let order: Vec<Chosen> = (0..5).map(|_| choose(&to, now)).collect();
    let ports: Vec<u16> = order.iter().map(port).collect();
    // 10 ms each, until three wait there: the fourth would wait as long as at the slow one.
    assert_eq!(ports[..3], [8_000; 3]);
    assert!(ports[3..].contains(&8_001), "{ports:?}");
}

#[test]
fn who_fails_several_times_in_a_row_is_passed_over_and_probed_by_one_request() {
    let (to, mut now) = (destination(3), Instant::now());
    let got = run(&to, &mut now, 300, MS, |port| (port != 8_001, 5 * MS));
    assert_eq!(got[&8_001], 5, "ejected after five failures in a row: {got:?}");
    now += Duration::from_secs(2);
    let got = run(&to, &mut now, 300, MS, |port| (port != 8_001, 5 * MS));
    assert_eq!(got[&8_001], 1, "one probe, which failed: {got:?}");
    now += Duration::from_secs(4);
    let got = run(&to, &mut now, 300, MS, |_| (true, 5 * MS));
    assert!((2..60).contains(&got[&8_001]), "it serves again, and comes to its share by and by: {got:?}");
}

#[test]
fn no_more_than_half_are_ever_passed_over() {
    for (endpoints, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
        let (to, mut now) = (destination(endpoints), Instant::now());
        run(&to, &mut now, 200, MS, |_| (false, MS));
        let members = to.members.borrow();
        let out = members.iter().filter(|member| member.health.standing(now) != Standing::Open).count();
        assert_eq!(out, most, "of {endpoints}");
    }
}

#[test]
fn a_slow_or_silent_or_flaky_endpoint_is_passed_over_and_a_busy_service_is_not() {
    let slow = |port: u16| (true, if port == 8_001 { 900 * MS } else { 10 * MS });
    let all_slow = |_: u16| (true, 900 * MS);
    let a_little = |port: u16| (true, if port == 8_001 { 20 * MS } else { 2 * MS });
    for (case, serve, expected) in [
        ("one slow", &slow as &dyn Fn(u16) -> (bool, Duration), true),
        ("all slow", &all_slow, false),
        ("slower by what nobody feels", &a_little, false),
    ] {
        let (to, mut now) = (destination(3), Instant::now());
        // Many at once, so that the slow one gets some too.
        let mut open: Vec<(Instant, Duration, Chosen)> = Vec::new();
        let mut ejected = Vec::new();
        for _ in 0..4_000 {
            now += 2 * MS;
            let mut done = Vec::new();
            open.retain_mut(|(at, latency, chosen)| {
                let over = *at <= now;
                if over {
                    done.extend(chosen.succeeded(now, *latency));
                }
                !over
            });
            ejected.extend(done);
            let chosen = choose(&to, now);
            let (_, latency) = serve(port(&chosen));
            open.push((now + latency, latency, chosen));
        }
        assert_eq!(!ejected.is_empty(), expected, "{case}: {ejected:?}");
        assert!(ejected.iter().all(|out| out.endpoint.port() == 8_001 && out.reason == Reason::Slow), "{ejected:?}");
    }
}

#[test]
fn an_endpoint_that_takes_requests_and_never_answers_is_passed_over() {
    let (to, mut now) = (destination(3), Instant::now());
    let (start, mut held, mut out) = (now, Vec::new(), None);
    let mut open: Vec<(Instant, Chosen)> = Vec::new();
    while out.is_none() && now - start < Duration::from_secs(10) {
        now += 5 * MS;
        let over = open.iter().take_while(|(at, _)| *at <= now).count();
        for (_, mut chosen) in open.drain(..over) {
            out = out.or(chosen.succeeded(now, 50 * MS));
        }
        match choose(&to, now) {
            silent if port(&silent) == 8_001 => held.push(silent),
            chosen => open.push((now + 50 * MS, chosen)),
        }
    }
    let out = out.expect("it is ejected");
    assert_eq!((out.endpoint.port(), out.reason), (8_001, Reason::Slow));
    assert!(now - start < Duration::from_secs(5), "after {:?}", now - start);
    assert!(held.len() < 20, "load alone keeps most requests away: {}", held.len());
}

#[test]
fn an_endpoint_that_fails_every_other_time_is_passed_over() {
    let (to, mut now) = (destination(3), Instant::now());
    let count = Cell::new(0);
    let serve = |port: u16| {
        if port == 8_001 {
            count.set(count.get() + 1);
        }
        (port != 8_001 || count.get() % 2 == 0, 5 * MS)
    };
    run(&to, &mut now, 3_000, MS, serve);
    let members = to.members.borrow();
    assert!(
        members.iter().any(|member| member.health.standing(now) != Standing::Open || member.health.share(now) < 1.0)
    );
}

#[test]
fn a_new_endpoint_gets_its_share_little_by_little_and_those_that_were_there_keep_what_is_known_of_them() {
    let balancer = balancer();
    let mut now = Instant::now();
    let to = balancer.service(&service(3, Traffic::DEFAULT), 0, None);
    run(&to, &mut now, 300, MS, |_| (true, 5 * MS));
    let known: Vec<*const Target> = to.members.borrow().iter().map(Rc::as_ptr).collect();
    // The clock of the balancer itself says when the fourth appeared.
    let appeared = Instant::now();
    assert!(Rc::ptr_eq(&to, &balancer.service(&service(4, Traffic::DEFAULT), 0, None)));
    assert_eq!(to.members.borrow()[..3].iter().map(Rc::as_ptr).collect::<Vec<_>>(), known);
    for (after, range) in [(0, 5..90), (5, 90..230), (10, 200..320)] {
        let mut now = appeared + Duration::from_secs(after);
        let got = run(&to, &mut now, 1_000, Duration::ZERO, |_| (true, 5 * MS));
        let share = got.get(&8_003).copied().unwrap_or_default();
        assert!(range.contains(&share), "{share} of 1000 after {after} s: {got:?}");
    }
    assert!(appeared.elapsed() < RAMP / 2, "the machine is too slow for this test");
}

#[test]
fn what_is_ejected_stays_so_when_the_configuration_changes() {
    let balancer = balancer();
    let to = balancer.service(&service(3, Traffic::DEFAULT), 0, None);
    let mut now = Instant::now();
    run(&to, &mut now, 100, Duration::ZERO, |port| (port != 8_001, 5 * MS));
    let newer = service(4, Traffic { max_requests: 7, ..Traffic::DEFAULT });
    balancer.sweep(|_, _| Some(Arc::clone(&newer)), |_| true);
    assert_eq!(to.traffic().max_requests, 7);
    let got = run(&to, &mut now, 100, Duration::ZERO, |_| (true, 5 * MS));
    assert!(!got.contains_key(&8_001), "{got:?}");
    drop(to);
    balancer.sweep(|_, _| None, |_| true);
    assert!(balancer.targets.borrow().is_empty(), "nothing is kept of a Service that is gone");
}

#[test]
fn an_endpoint_that_was_tried_is_not_tried_again_and_nobody_is_asked_in_an_outage() {
    let (to, mut now) = (destination(2), Instant::now());
    let mut tried = Tried::default();
    let first = to.choose(&tried, now).expect("there are two");
    tried.add(&first.target);
    assert!(to.may_repeat(&tried, now));
    let second = to.choose(&tried, now).expect("one is left");
    assert_ne!(port(&first), port(&second));
    tried.add(&second.target);
    assert!(to.choose(&tried, now).is_none());
    assert!(!to.may_repeat(&tried, now));
    // Both fail: no request is worth repeating.
    run(&to, &mut now, 100, MS, |_| (false, MS));
    let mut tried = Tried::default();
    tried.add(&choose(&to, now).target);
    assert!(!to.may_repeat(&tried, now));
    assert!(destination(0).choose(&Tried::default(), now).is_none());
}

#[test]
fn a_setting_of_nought_turns_ejection_off() {
    let to = balancer().service(&service(3, Traffic { eject_after: 0, ..Traffic::DEFAULT }), 0, None);
    let mut now = Instant::now();
    let got = run(&to, &mut now, 300, 10 * MS, |port| (port != 8_001, 5 * MS));
    assert!(got[&8_001] > 50, "{got:?}");
}
