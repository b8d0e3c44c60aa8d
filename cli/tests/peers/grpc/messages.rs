//! Messages of `grpc.testing`, as far as the cases use them. Field numbers are those of gRPC's interoperability tests.

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Payload {
    #[prost(bytes = "vec", tag = "2")]
    pub body: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct EchoStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SimpleRequest {
    #[prost(int32, tag = "2")]
    pub response_size: i32,
    #[prost(message, optional, tag = "3")]
    pub payload: Option<Payload>,
    #[prost(message, optional, tag = "7")]
    pub response_status: Option<EchoStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SimpleResponse {
    #[prost(message, optional, tag = "1")]
    pub payload: Option<Payload>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamingInputRequest {
    #[prost(message, optional, tag = "1")]
    pub payload: Option<Payload>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct StreamingInputResponse {
    #[prost(int32, tag = "1")]
    pub aggregated_payload_size: i32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ResponseParameters {
    #[prost(int32, tag = "1")]
    pub size: i32,
    #[prost(int32, tag = "2")]
    pub interval_us: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamingOutputRequest {
    #[prost(message, repeated, tag = "2")]
    pub response_parameters: Vec<ResponseParameters>,
    #[prost(message, optional, tag = "3")]
    pub payload: Option<Payload>,
    #[prost(message, optional, tag = "7")]
    pub response_status: Option<EchoStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamingOutputResponse {
    #[prost(message, optional, tag = "1")]
    pub payload: Option<Payload>,
}

pub fn payload(size: usize) -> Option<Payload> {
    Some(Payload { body: vec![0; size] })
}

pub const SERVICE: &str = "grpc.testing.TestService";
/// Comes back in the first metadata.
pub const ECHO_INITIAL: &str = "x-grpc-test-echo-initial";
/// Comes back in the trailers.
pub const ECHO_TRAILING: &str = "x-grpc-test-echo-trailing-bin";
/// What the tonic server adds to tell of the deadline that reached it.
pub const SEEN_TIMEOUT: &str = "x-seen-timeout";
