//! Streams in frames over loopback connections. The peer is either another tunnel or a hand that writes bytes.
use std::net::Ipv4Addr;

use proptest::prelude::*;
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::stage::forward;
use crate::stage::policy::Permit;

const PORT: u16 = 9000;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.expect("it listens"), server.expect("somebody connects").0)
}

fn tunnel(stream: TcpStream) -> Tunnel {
    Tunnel::new(Transport::Plain(stream), PORT)
}

async fn tunnels() -> (Tunnel, Tunnel) {
    let (client, server) = pair().await;
    (tunnel(client), tunnel(server))
}

async fn send(tunnel: &mut Tunnel, mut bytes: &[u8], last: bool) -> io::Result<()> {
    while !bytes.is_empty() {
        let taken = poll_fn(|cx| tunnel.poll_write(cx, bytes, last)).await?;
        bytes = &bytes[taken..];
    }
    match last {
        true => poll_fn(|cx| tunnel.poll_end(cx)).await,
        false => poll_fn(|cx| tunnel.poll_flush(cx)).await,
    }
}

async fn read_all(tunnel: &mut Tunnel) -> io::Result<Vec<u8>> {
    let (mut all, mut piece) = (Vec::new(), vec![0; 5000]);
    loop {
        match poll_fn(|cx| tunnel.poll_read(cx, &mut piece)).await? {
            0 => return Ok(all),
            read => all.extend_from_slice(&piece[..read]),
        }
    }
}

#[tokio::test]
async fn streams_follow_one_another_each_with_half_close_in_both_directions() {
    let (mut client, mut server) = tunnels().await;
    for (question, answer) in [(3, 5), (200_000, 0), (0, 200_000), (MOST_DATA, MOST_DATA + 1), (0, 0)] {
        let (question, answer) = (vec![1; question], vec![2; answer]);
        client.open(false);
        let there = async {
            send(&mut client, &question, true).await.expect("sent");
            let answer = read_all(&mut client).await.expect("answered");
            assert!(client.settle().await);
            answer
        };
        let back = async {
            assert_eq!(server.next().await.expect("opened"), Some(Open { port: PORT, undecided: false }));
            let question = read_all(&mut server).await.expect("asked");
            send(&mut server, &answer, true).await.expect("sent");
            assert!(server.settle().await);
            question
        };
        assert_eq!(tokio::join!(there, back), (answer.clone(), question.clone()));
        assert!(client.is_quiet());
    }
    assert_eq!((client.streams(), server.streams()), (5, 5));
    server.close().await;
    assert!(!client.is_quiet());
}

#[tokio::test]
async fn a_stream_that_is_broken_off_leaves_nothing_behind_for_the_next() {
    let (mut client, mut server) = tunnels().await;
    client.open(false);
    send(&mut client, &[1; 100_000], false).await.expect("sent");
    server.next().await.expect("opened");
    send(&mut server, &[2; 100_000], false).await.expect("sent");
    // Neither has read what the other sent.
    assert_eq!(tokio::join!(client.settle(), server.settle()), (true, true));
    client.open(false);
    send(&mut client, b"next", true).await.expect("sent");
    assert_eq!(server.next().await.expect("opened"), Some(Open { port: PORT, undecided: false }));
    assert_eq!(read_all(&mut server).await.expect("asked"), b"next");
    // Broken off by one side alone: the other learns it as a failure, not as an end.
    let (settled, read) = tokio::join!(server.settle(), async {
        let read = read_all(&mut client).await;
        assert!(client.settle().await);
        read
    });
    assert!(settled);
    assert_eq!(read.expect_err("reset").kind(), io::ErrorKind::ConnectionReset);
    assert!(client.is_quiet());
}

#[tokio::test]
async fn a_connection_whose_stream_was_not_ended_by_both_sides_ends_with_a_reset() {
    let (client, mut server) = pair().await;
    let mut client = tunnel(client);
    client.open(false);
    send(&mut client, b"half a stream", false).await.expect("sent");
    drop(client);
    let end = server.read_to_end(&mut Vec::new()).await;
    assert_eq!(end.expect_err("reset").kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn whoever_is_silent_takes_its_stream_back_without_a_trace() {
    let (mut client, mut server) = tunnels().await;
    client.open(true);
    let (client_settled, begun) = tokio::join!(
        async {
            poll_fn(|cx| client.poll_flush(cx)).await.expect("sent");
            client.settle().await
        },
        async {
            assert_eq!(server.next().await.expect("opened"), Some(Open { port: PORT, undecided: true }));
            let begun = server.first().await.expect("told");
            assert!(server.settle().await);
            begun
        }
    );
    assert!(client_settled && !begun);
    // The server speaks first on the next one.
    client.open(true);
    let (first, ()) = tokio::join!(client.first(), async {
        server.next().await.expect("opened");
        send(&mut server, b"hello", true).await.expect("sent");
    });
    assert!(first.expect("told"));
    assert_eq!(read_all(&mut client).await.expect("said"), b"hello");
}

#[tokio::test]
async fn a_stream_that_crossed_with_the_end_of_a_kept_connection_is_known_to_be_unopened() {
    let used = || async {
        let (mut client, mut server) = tunnels().await;
        client.open(false);
        let (sent, opened) = tokio::join!(send(&mut client, b"1", true), server.next());
        sent.expect("sent");
        opened.expect("opened");
        assert_eq!(read_all(&mut server).await.expect("asked"), b"1");
        send(&mut server, b"2", true).await.expect("sent");
        assert_eq!(read_all(&mut client).await.expect("answered"), b"2");
        assert_eq!(tokio::join!(client.settle(), server.settle()), (true, true));
        client.open(false);
        (client, server)
    };
    // Closed in order: what was sent is given back.
    let (mut client, server) = used().await;
    let ((), sent) = tokio::join!(server.close(), async {
        send(&mut client, b"again", false).await.expect("sent");
        let ended = read_all(&mut client).await;
        (ended.expect_err("closed").kind(), client.take_unopened())
    });
    assert_eq!(sent, (io::ErrorKind::UnexpectedEof, Some(b"again".to_vec())));
    // Too much to keep, or an answer had begun: nobody knows.
    let (mut client, server) = used().await;
    let ((), sent) = tokio::join!(server.close(), async {
        send(&mut client, &[0; MOST_KEPT + 1], false).await.expect("sent");
        let _ = read_all(&mut client).await;
        client.take_unopened()
    });
    assert_eq!(sent, None);
    let (mut client, mut server) = used().await;
    send(&mut client, b"again", false).await.expect("sent");
    server.next().await.expect("opened");
    send(&mut server, b"yes", false).await.expect("sent");
    let mut piece = [0; 3];
    poll_fn(|cx| client.poll_read(cx, &mut piece)).await.expect("answered");
    drop(server);
    let _ = read_all(&mut client).await;
    assert_eq!(client.take_unopened(), None);
    // Not in order: it may have been carried out.
    let (mut client, server) = used().await;
    SockRef::from(server.transport.tcp()).set_linger(Some(Duration::ZERO)).expect("a socket");
    drop(server);
    let _ = send(&mut client, b"again", false).await;
    let _ = read_all(&mut client).await;
    assert_eq!(client.take_unopened(), None);
    // On a new connection the end is the server's answer.
    let (mut client, server) = tunnels().await;
    client.open(false);
    send(&mut client, b"first", false).await.expect("sent");
    server.close().await;
    let _ = read_all(&mut client).await;
    assert_eq!(client.take_unopened(), None);
}

#[tokio::test]
async fn what_a_peer_may_not_send_ends_the_connection_and_is_named() {
    let open = [1, 0, 0, 4, 1, 0, 0x23, 0x28];
    // Sent to a server; whether it opens a stream before the fault.
    for (bytes, fault) in [
        (&[2, 0, 0, 1, 7][..], FrameError::Unexpected(Frame::Data(1))),
        (&[3, 0, 0, 0], FrameError::Unexpected(Frame::End)),
        (&[4, 0, 0, 0], FrameError::Unexpected(Frame::Reset)),
        (&[1, 0, 0, 4, 1, 0, 0, 80], FrameError::Port { asked: 80, port: PORT }),
        (&[9, 0, 0, 0], FrameError::Type(9)),
        (&[&open[..], &open].concat(), FrameError::Unexpected(Frame::Open(Open { port: PORT, undecided: false }))),
        (&[&open[..], &[2, 0, 0, 0]].concat(), FrameError::Length { kind: 2, length: 0 }),
        (&[&open[..], &[2, 0, 0, 1, 7, 77]].concat(), FrameError::Type(77)),
        (&[&open[..], &[3, 0, 0, 0, 2, 0, 0, 1, 7]].concat(), FrameError::Unexpected(Frame::Data(1))),
    ] {
        let (mut peer, server) = pair().await;
        let mut server = tunnel(server);
        let sent = [bytes, &[0; 8]].concat();
        tokio::io::AsyncWriteExt::write_all(&mut peer, &sent).await.expect("sent");
        let failed = async {
            server.next().await?;
            read_all(&mut server).await?;
            // Its own direction ends too, so that the next frame is one between two streams.
            send(&mut server, b"", true).await?;
            assert!(server.settle().await);
            server.next().await
        };
        let error = failed.await.expect_err("refused");
        assert_eq!((error.kind(), server.fault()), (io::ErrorKind::InvalidData, Some(fault)), "{bytes:?}");
        assert!(!server.settle().await);
        drop(server);
        assert!(peer.read_to_end(&mut Vec::new()).await.is_err(), "{bytes:?}: reset");
    }
    // Cut within a frame: no fault of the protocol, and no whole stream either.
    for length in 1..open.len() + 6 {
        let (mut peer, server) = pair().await;
        let mut server = tunnel(server);
        let whole = [&open[..], &[2, 0, 0, 9, 7, 7]].concat();
        tokio::io::AsyncWriteExt::write_all(&mut peer, &whole[..length]).await.expect("sent");
        drop(peer);
        let end = async {
            server.next().await?;
            read_all(&mut server).await
        };
        assert_eq!(end.await.expect_err("cut").kind(), io::ErrorKind::UnexpectedEof, "{length}");
    }
}

#[tokio::test]
async fn whoever_breaks_off_waits_for_the_others_end_and_gives_up_on_a_flood() {
    let (peer, server) = pair().await;
    let (mut server, mut peer) = (tunnel(server), peer);
    let flood = async {
        let frame = [&[2, 0, 0x80, 0][..], &[0; 0x8000]].concat();
        tokio::io::AsyncWriteExt::write_all(&mut peer, &[1, 0, 0, 4, 1, 0, 0x23, 0x28]).await?;
        loop {
            tokio::io::AsyncWriteExt::write_all(&mut peer, &frame).await?;
        }
    };
    let refuse = async {
        server.next().await.expect("opened");
        let settled = server.settle().await;
        drop(server);
        settled
    };
    let (flooded, settled): (io::Result<()>, bool) = tokio::join!(flood, refuse);
    assert!(flooded.is_err() && !settled);
}

#[tokio::test]
async fn bytes_are_carried_through_two_tunnels_with_back_pressure() {
    let (mut user, caller) = pair().await;
    let (mut client, mut server) = tunnels().await;
    let (endpoint, mut application) = pair().await;
    const WHOLE: usize = 3 << 20;
    let nearer = async {
        let mut caller = Transport::Plain(caller).rewind(Default::default());
        client.open(false);
        forward::bytes(&mut caller, &mut client, |_| (), |_| (), &Permit::of_destination()).await?;
        io::Result::Ok(client.settle().await)
    };
    let farther = async {
        server.next().await?;
        let mut endpoint = Transport::Plain(endpoint).rewind(Default::default());
        forward::bytes(&mut server, &mut endpoint, |_| (), |_| (), &Permit::of_destination()).await?;
        io::Result::Ok(server.settle().await)
    };
    let sent: Vec<u8> = (0..=250).cycle().take(WHOLE).collect();
    let talk = async {
        tokio::io::AsyncWriteExt::write_all(&mut user, &sent).await?;
        tokio::io::AsyncWriteExt::shutdown(&mut user).await?;
        let mut answer = Vec::new();
        user.read_to_end(&mut answer).await.map(|_| answer)
    };
    let echo = async {
        // Reads the whole before it answers: the direction back is open while the one there has ended.
        let mut whole = Vec::new();
        application.read_to_end(&mut whole).await?;
        tokio::io::AsyncWriteExt::write_all(&mut application, &whole).await?;
        tokio::io::AsyncWriteExt::shutdown(&mut application).await
    };
    let (nearer, farther, answer, echoed) = tokio::join!(nearer, farther, talk, echo);
    assert!(nearer.expect("carried") && farther.expect("carried"));
    echoed.expect("echoed");
    assert!(answer.expect("answered") == sent);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_a_peer_sends_is_served_or_refused_and_never_panics(
        frames in prop::collection::vec(prop_oneof![
            Just(vec![1, 0, 0, 4, 1, 0, 0x23, 0x28]),
            Just(vec![1, 0, 0, 4, 1, 1, 0x23, 0x28]),
            Just(vec![2, 0, 0, 3, 1, 2, 3]),
            Just(vec![3, 0, 0, 0]),
            Just(vec![4, 0, 0, 0]),
            prop::collection::vec(any::<u8>(), 0..12),
        ], 0..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (mut peer, server) = pair().await;
            let mut server = tunnel(server);
            tokio::io::AsyncWriteExt::write_all(&mut peer, &frames.concat()).await.expect("sent");
            tokio::io::AsyncWriteExt::shutdown(&mut peer).await.expect("sent");
            let mut streams = 0;
            while let Ok(Some(_)) = server.next().await {
                streams += 1;
                let _ = read_all(&mut server).await;
                if send(&mut server, b"answer", true).await.is_err() && !server.settle().await || !server.settle().await {
                    break;
                }
            }
            assert!(streams <= frames.len());
        });
    }
}
