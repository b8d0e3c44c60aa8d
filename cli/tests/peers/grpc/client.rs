//! gRPC's interoperability cases by tonic.
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt as _, stream};
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::messages::*;

/// Runs one case on a connection of its own.
pub async fn run(case: &str, target: SocketAddr) -> Result<()> {
    let mut client = connect(target).await?;
    match case {
        "empty_unary" => drop(empty_unary(&mut client, "EmptyCall").await?),
        "large_unary" => large_unary(&mut client).await?,
        "client_streaming" => client_streaming(&mut client).await?,
        "server_streaming" => server_streaming(&mut client).await?,
        "ping_pong" => ping_pong(&mut client).await?,
        "empty_stream" => empty_stream(&mut client).await?,
        "status_code_and_message" => wished_status(&mut client, "test status message").await?,
        "special_status_message" => {
            wished_status(&mut client, "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n").await?;
        }
        "custom_metadata" => custom_metadata(&mut client).await?,
        "unimplemented_method" => unimplemented(empty_unary(&mut client, "UnimplementedCall").await)?,
        "unimplemented_service" => {
            unimplemented(call(&mut client, "grpc.testing.UnimplementedService/UnimplementedCall").await)?
        }
        "timeout_on_sleeping_server" => deadline(&mut client).await?,
        "cancel_after_begin" => cancel_after_begin(&mut client).await?,
        "cancel_after_first_response" => cancel_after_first_response(&mut client).await?,
        unknown => bail!("no such case: {unknown}"),
    }
    Ok(())
}

/// A call of `EmptyCall`: whether it could be sent, and how it ended.
pub async fn empty_call(target: SocketAddr) -> Result<Result<(), Status>> {
    let mut client = connect(target).await?;
    Ok(empty_unary(&mut client, "EmptyCall").await.map(drop))
}

type Client = Grpc<Channel>;

async fn connect(target: SocketAddr) -> Result<Client> {
    let mut client = Grpc::new(Endpoint::from_shared(format!("http://{target}"))?.connect().await?);
    client.ready().await?;
    Ok(client)
}

fn path(method: &str) -> PathAndQuery {
    format!("/{SERVICE}/{method}").parse().expect("names of methods are paths")
}

async fn ready(client: &mut Client) -> Result<(), Status> {
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))
}

async fn call(client: &mut Client, method: &str) -> Result<Response<Empty>, Status> {
    ready(client).await?;
    let path = format!("/{method}").parse().expect("names of methods are paths");
    client.unary(Request::new(Empty {}), path, ProstCodec::default()).await
}

async fn empty_unary(client: &mut Client, method: &str) -> Result<Response<Empty>, Status> {
    call(client, &format!("{SERVICE}/{method}")).await
}

async fn unary(client: &mut Client, request: Request<SimpleRequest>) -> Result<Response<SimpleResponse>, Status> {
    ready(client).await?;
    client.unary(request, path("UnaryCall"), ProstCodec::default()).await
}

type Requests = stream::BoxStream<'static, StreamingOutputRequest>;

async fn full_duplex(
    client: &mut Client,
    requests: Request<Requests>,
) -> Result<Response<Streaming<StreamingOutputResponse>>, Status> {
    ready(client).await?;
    client.streaming(requests, path("FullDuplexCall"), ProstCodec::default()).await
}

fn output_request(sizes: &[i32], payload_size: usize) -> StreamingOutputRequest {
    let wishes = sizes.iter().map(|size| ResponseParameters { size: *size, interval_us: 0 });
    StreamingOutputRequest {
        response_parameters: wishes.collect(),
        payload: payload(payload_size),
        response_status: None,
    }
}

fn length(response: &StreamingOutputResponse) -> usize {
    response.payload.as_ref().map_or(0, |payload| payload.body.len())
}

async fn large_unary(client: &mut Client) -> Result<()> {
    let request = SimpleRequest { response_size: 314_159, payload: payload(271_828), response_status: None };
    let response = unary(client, Request::new(request)).await?.into_inner();
    ensure!(response.payload.is_some_and(|payload| payload.body == vec![0; 314_159]));
    Ok(())
}

async fn client_streaming(client: &mut Client) -> Result<()> {
    let inputs = [27_182, 8, 1_828, 45_904].map(|size| StreamingInputRequest { payload: payload(size) });
    let response: Response<StreamingInputResponse> = client
        .client_streaming(Request::new(stream::iter(inputs)), path("StreamingInputCall"), ProstCodec::default())
        .await?;
    ensure!(response.get_ref().aggregated_payload_size == 74_922, "{response:?}");
    Ok(())
}

async fn server_streaming(client: &mut Client) -> Result<()> {
    let request = Request::new(output_request(&[31_415, 9, 2_653, 58_979], 0));
    let response: Response<Streaming<StreamingOutputResponse>> =
        client.server_streaming(request, path("StreamingOutputCall"), ProstCodec::default()).await?;
    let sizes: Vec<usize> =
        response.into_inner().map(|output| output.as_ref().map_or(usize::MAX, length)).collect().await;
    ensure!(sizes == [31_415, 9, 2_653, 58_979], "{sizes:?}");
    Ok(())
}

/// Each request is sent once the last was answered: neither direction may be held back.
async fn ping_pong(client: &mut Client) -> Result<()> {
    let (sender, requests) = mpsc::channel(1);
    sender.send(output_request(&[31_415], 27_182)).await?;
    let mut answers = full_duplex(client, Request::new(ReceiverStream::new(requests).boxed())).await?.into_inner();
    for (number, (answer, next)) in
        [(31_415, Some((9, 8))), (9, Some((2_653, 1_828))), (2_653, Some((58_979, 45_904))), (58_979, None)]
            .into_iter()
            .enumerate()
    {
        let got = answers.message().await?.with_context(|| format!("answer {number}"))?;
        ensure!(length(&got) == answer, "answer {number}: {}", length(&got));
        if let Some((wish, size)) = next {
            sender.send(output_request(&[wish], size)).await?;
        }
    }
    drop(sender);
    ensure!(answers.message().await?.is_none(), "one answer too many");
    Ok(())
}

async fn empty_stream(client: &mut Client) -> Result<()> {
    let mut answers = full_duplex(client, Request::new(stream::empty().boxed())).await?.into_inner();
    ensure!(answers.message().await?.is_none(), "an answer to nothing");
    Ok(())
}

async fn wished_status(client: &mut Client, message: &str) -> Result<()> {
    let wish = || Some(EchoStatus { code: Code::Unknown as i32, message: message.to_owned() });
    let request = SimpleRequest { response_size: 0, payload: None, response_status: wish() };
    let one = unary(client, Request::new(request)).await.err().context("a status by UnaryCall")?;
    let request = StreamingOutputRequest { response_parameters: vec![], payload: None, response_status: wish() };
    let answers = full_duplex(client, Request::new(stream::iter([request]).boxed())).await;
    let other = match answers {
        Err(status) => status,
        Ok(mut answers) => answers.get_mut().message().await.err().context("a status by FullDuplexCall")?,
    };
    for status in [one, other] {
        ensure!(status.code() == Code::Unknown && status.message() == message, "{status:?}");
    }
    Ok(())
}

async fn custom_metadata(client: &mut Client) -> Result<()> {
    let trailing = MetadataValue::from_bytes(&[0xab, 0xab, 0xab]);
    let mut request =
        Request::new(SimpleRequest { response_size: 314_159, payload: payload(271_828), response_status: None });
    request.metadata_mut().insert(ECHO_INITIAL, "test_initial_metadata_value".parse()?);
    request.metadata_mut().insert_bin(ECHO_TRAILING, trailing.clone());
    let metadata = request.metadata().clone();
    // tonic shows trailers of a call with one answer beside the first metadata.
    let response = unary(client, request).await?;
    check_echo(response.metadata(), response.metadata())?;
    let mut request = Request::new(stream::iter([output_request(&[314_159], 271_828)]).boxed());
    *request.metadata_mut() = metadata;
    let mut answers = full_duplex(client, request).await?;
    while answers.get_mut().message().await?.is_some() {}
    let trailers = answers.get_mut().trailers().await?.context("trailers")?;
    check_echo(answers.metadata(), &trailers)
}

fn check_echo(first: &tonic::metadata::MetadataMap, last: &tonic::metadata::MetadataMap) -> Result<()> {
    ensure!(first.get(ECHO_INITIAL).is_some_and(|value| value == "test_initial_metadata_value"), "{first:?}");
    let trailing = last.get_bin(ECHO_TRAILING).context("the trailer")?;
    ensure!(trailing.to_bytes()?.as_ref() == [0xab, 0xab, 0xab], "{trailing:?}");
    Ok(())
}

fn unimplemented(ended: Result<Response<Empty>, Status>) -> Result<()> {
    let status = ended.err().context("it is not implemented")?;
    ensure!(status.code() == Code::Unimplemented, "{status:?}");
    Ok(())
}

/// The deadline reaches the server, and ends a call that it does not answer.
async fn deadline(client: &mut Client) -> Result<()> {
    let mut request = Request::new(SimpleRequest { response_size: 1, payload: None, response_status: None });
    request.set_timeout(Duration::from_secs(33));
    let response = unary(client, request).await?;
    // Only the tonic server tells.
    if let Some(seen) = response.metadata().get(SEEN_TIMEOUT) {
        ensure!(seen == "33000000u" || seen == "33S" || seen == "33000m", "{seen:?}");
    }
    let (_sender, requests) = mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(requests).boxed());
    request.set_timeout(Duration::from_millis(1));
    let status = match full_duplex(client, request).await {
        Err(status) => status,
        Ok(mut answers) => answers.get_mut().message().await.err().context("a status")?,
    };
    // tonic's client calls its own timeout a cancellation.
    ensure!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    Ok(())
}

async fn cancel_after_begin(client: &mut Client) -> Result<()> {
    let (sender, requests) = mpsc::channel(1);
    let requests = Request::new(ReceiverStream::new(requests));
    sender.send(StreamingInputRequest { payload: payload(1) }).await?;
    let call = client.client_streaming(requests, path("StreamingInputCall"), ProstCodec::default());
    let begun = async {
        // The first message is on its way once there is room for a second, and a third.
        for _ in 0..2 {
            let _ = sender.send(StreamingInputRequest { payload: payload(1) }).await;
        }
    };
    tokio::select! {
        ended = call => {
            let ended: Result<Response<StreamingInputResponse>, Status> = ended;
            bail!("the server waits for more: {ended:?}")
        }
        () = begun => Ok(()),
    }
}

/// Begins a stream of requests, and drops it when it is told to.
pub async fn drop_when_told(target: SocketAddr, told: tokio::sync::oneshot::Receiver<()>) -> Result<()> {
    let mut client = connect(target).await?;
    let (sender, requests) = mpsc::channel(1);
    let requests = Request::new(ReceiverStream::new(requests));
    sender.send(StreamingInputRequest { payload: payload(1) }).await?;
    let call = client.client_streaming(requests, path("StreamingInputCall"), ProstCodec::default());
    tokio::select! {
        ended = call => {
            let ended: Result<Response<StreamingInputResponse>, Status> = ended;
            bail!("the server waits for more: {ended:?}")
        }
        told = told => Ok(told?),
    }
}

async fn cancel_after_first_response(client: &mut Client) -> Result<()> {
    let (sender, requests) = mpsc::channel(1);
    sender.send(output_request(&[31_415], 27_182)).await?;
    let mut answers = full_duplex(client, Request::new(ReceiverStream::new(requests).boxed())).await?.into_inner();
    let first = answers.message().await?.context("a first answer")?;
    ensure!(length(&first) == 31_415);
    Ok(())
}
