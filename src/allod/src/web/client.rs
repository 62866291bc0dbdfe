//! One GET: from a judged name to connected bytes, and on where the server says so.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;

use bytes::Bytes;
use cloud::driver::{DriverError, WebFile};
use futures::StreamExt;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::addresses::meant;
use super::rules::Target;
use super::{Limits, Refusal, Web, roots};

/// An answer's head is at most so large, in bytes and in headers.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;

/// A connection's task, which ends with whoever reads from it.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Web {
    /// Fetches a file.
    pub(super) async fn fetch(&self, uri: &str) -> Result<WebFile, Refusal> {
        let end = Instant::now() + self.limits.whole;
        let mut target = self.rules.read(uri)?;
        let mut redirects = 0;
        loop {
            let (answer, connection) = timeout_at(end, self.ask(&target))
                .await
                .map_err(|_| Refusal::TooLong(self.limits.whole))??;
            match answer.status() {
                StatusCode::OK => return self.file(answer, connection, end),
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    redirects += 1;
                    if redirects > self.limits.redirects {
                        return Err(Refusal::Redirects);
                    }
                    target = self.next(&target, answer.headers())?;
                }
                status => return Err(Refusal::Status(target.host, status.as_u16())),
            }
        }
    }

    /// Where an answer sends us on to: judged as what the tenant named.
    fn next(&self, from: &Target, headers: &HeaderMap) -> Result<Target, Refusal> {
        let to = headers.get(header::LOCATION).and_then(|to| to.to_str().ok());
        let to = to.and_then(|to| from.url.join(to).ok());
        let to = self
            .rules
            .judge(to.ok_or_else(|| Refusal::NoAnswer(from.host.clone()))?)?;
        if from.tls && !to.tls {
            return Err(Refusal::Downgrade);
        }
        Ok(to)
    }

    /// The cloud's own addresses that need no name server.
    pub(super) fn own_literals(&self) -> Vec<IpAddr> {
        let mut own = self.own.clone();
        own.extend(
            self.rules
                .own_hosts
                .iter()
                .filter_map(|host| host.parse::<IpAddr>().ok()),
        );
        match nix::ifaddrs::getifaddrs() {
            Ok(interfaces) => own.extend(interfaces.filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
            })),
            Err(error) => tracing::error!(%error, "this host's addresses cannot be listed"),
        }
        own
    }

    /// All of the cloud's own addresses.
    async fn own_addresses(&self) -> Vec<IpAddr> {
        let mut own = self.own_literals();
        for name in self
            .rules
            .own_hosts
            .iter()
            .filter(|host| host.parse::<IpAddr>().is_err())
        {
            if let Ok(addresses) = self.resolve(name).await {
                own.extend(addresses);
            }
        }
        own
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Refusal> {
        match timeout(self.limits.resolve, self.resolver.addresses(name)).await {
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(error)) => {
                tracing::debug!(name, %error, "a name was not resolved");
                Err(Refusal::NotAllowed)
            }
            Err(_) => Err(Refusal::NotAllowed),
        }
    }

    /// The addresses that may be connected to, at least one.
    async fn addresses(&self, target: &Target) -> Result<Vec<IpAddr>, Refusal> {
        let found = match target.address {
            Some(address) => vec![address],
            None => self.resolve(&target.host).await?,
        };
        let own = self.own_addresses().await;
        let mut permitted: Vec<IpAddr> = Vec::new();
        for address in found {
            // A mapped address is connected to as what it means; one of NAT64 by the translator, which is where it leads.
            let address = match (address, meant(address)) {
                (IpAddr::V6(v6), v4) if v6.to_ipv4_mapped().is_some() => v4,
                _ => address,
            };
            if self.rules.permits(target, address, &own) && !permitted.contains(&address) {
                permitted.push(address);
            }
        }
        permitted.truncate(self.limits.addresses);
        match permitted.is_empty() {
            true => Err(Refusal::NotAllowed),
            false => Ok(permitted),
        }
    }

    async fn connect(&self, target: &Target) -> Result<Box<dyn Stream>, Refusal> {
        let unreachable = || Refusal::Unreachable(target.host.clone());
        let mut stream = None;
        for address in self.addresses(target).await? {
            let address = SocketAddr::new(address, target.port);
            match timeout(self.limits.connect, TcpStream::connect(address)).await {
                Ok(Ok(connected)) => {
                    stream = Some(connected);
                    break;
                }
                Ok(Err(error)) => tracing::debug!(%address, %error, "no connection"),
                Err(_) => tracing::debug!(%address, "no connection in time"),
            }
        }
        let stream = stream.ok_or_else(unreachable)?;
        if !target.tls {
            return Ok(Box::new(stream));
        }
        let untrusted = |why: String| Refusal::Tls(target.host.clone(), why);
        let config = roots::client(self.ca_file.as_deref()).map_err(untrusted)?;
        let name = match target.address {
            Some(address) => ServerName::IpAddress(address.into()),
            None => {
                ServerName::try_from(target.host.clone()).map_err(|error| untrusted(error.to_string()))?
            }
        };
        match timeout(
            self.limits.connect,
            TlsConnector::from(config).connect(name, stream),
        )
        .await
        {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(untrusted(error.to_string())),
            Err(_) => Err(unreachable()),
        }
    }

    /// Asks one server, and has the head of its answer.
    async fn ask(&self, target: &Target) -> Result<(Response<Incoming>, Connection), Refusal> {
        let stream = self.connect(target).await?;
        let none = |error: hyper::Error| {
            tracing::debug!(host = target.host, %error, "no answer");
            Refusal::NoAnswer(target.host.clone())
        };
        let asked = async {
            let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
                .max_buf_size(MAX_HEAD)
                .max_headers(MAX_HEADERS)
                .handshake(TokioIo::new(Pin::new(stream)))
                .await
                .map_err(none)?;
            let connection = Connection(tokio::spawn(async move {
                let _ = connection.await;
            }));
            let path = &target.url[url::Position::BeforePath..url::Position::AfterQuery];
            let host = &target.url[url::Position::BeforeHost..url::Position::AfterPort];
            let request = Request::get(path)
                .header(header::HOST, host)
                .header(header::USER_AGENT, concat!("allod/", env!("CARGO_PKG_VERSION")))
                .header(header::ACCEPT, "*/*")
                .header(header::ACCEPT_ENCODING, "identity")
                .header(header::CONNECTION, "close")
                .body(Empty::<Bytes>::new())
                .map_err(|_| Refusal::NoUri)?;
            let answer = sender.send_request(request).await.map_err(none)?;
            Ok((answer, connection))
        };
        timeout(self.limits.answer, asked)
            .await
            .map_err(|_| Refusal::NoAnswer(target.host.clone()))?
    }

    /// The bytes of an answer.
    fn file(
        &self,
        answer: Response<Incoming>,
        connection: Connection,
        end: Instant,
    ) -> Result<WebFile, Refusal> {
        let headers = answer.headers();
        let plain = |value: &header::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
        if !headers.get_all(header::CONTENT_ENCODING).iter().all(plain) {
            return Err(Refusal::Compressed);
        }
        // Without a length or chunks, a connection that breaks looks like the end of the file.
        let length = answer.body().size_hint().exact();
        if length.is_none() && !headers.contains_key(header::TRANSFER_ENCODING) {
            return Err(Refusal::NoLength);
        }
        let modified = headers
            .get(header::LAST_MODIFIED)
            .and_then(|time| time.to_str().ok());
        Ok(WebFile {
            length,
            modified: modified.and_then(micros),
            bytes: chunks(answer.into_body(), connection, self.limits.clone(), end).boxed(),
        })
    }
}

/// A date of HTTP (RFC 9110 §5.6.7) in microseconds since 1970.
fn micros(date: &str) -> Option<i64> {
    let date = OffsetDateTime::parse(date, &Rfc2822).ok()?;
    date.unix_timestamp().checked_mul(1_000_000)
}

/// How far a body is.
struct Reading {
    body: Incoming,
    _connection: Connection,
    /// Since when, and how many bytes since.
    window: (Instant, u64),
}

fn chunks(
    body: Incoming,
    connection: Connection,
    limits: Limits,
    end: Instant,
) -> impl futures::Stream<Item = Result<Bytes, DriverError>> + Send {
    let reading = Reading {
        body,
        _connection: connection,
        window: (Instant::now(), 0),
    };
    // After an error there is nothing more.
    futures::stream::unfold(Some(reading), move |reading| {
        let limits = limits.clone();
        async move {
            let mut reading = reading?;
            match next(&mut reading, &limits, end).await {
                Ok(Some(chunk)) => Some((Ok(chunk), Some(reading))),
                Ok(None) => None,
                Err(refusal) => Some((Err(refusal.into()), None)),
            }
        }
    })
}

async fn next(reading: &mut Reading, limits: &Limits, end: Instant) -> Result<Option<Bytes>, Refusal> {
    loop {
        // Asked here, too: of a server that always has a byte ready no wait would end.
        if Instant::now() >= end {
            return Err(Refusal::TooLong(limits.whole));
        }
        let stalled = Instant::now() + limits.stall;
        let frame = match timeout_at(stalled.min(end), reading.body.frame()).await {
            Ok(frame) => frame,
            Err(_) if Instant::now() >= end => return Err(Refusal::TooLong(limits.whole)),
            Err(_) => return Err(Refusal::Slow),
        };
        let chunk = match frame {
            None => return Ok(None),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(chunk) => chunk,
                // Trailers.
                Err(_) => continue,
            },
            Some(Err(error)) => {
                tracing::debug!(%error, "a file broke off");
                return Err(Refusal::BrokenOff);
            }
        };
        let (began, came) = reading.window;
        let came = came + chunk.len() as u64;
        reading.window = if began.elapsed() < limits.stall {
            (began, came)
        } else if came >= limits.trickle {
            (Instant::now(), 0)
        } else {
            return Err(Refusal::Slow);
        };
        return Ok(Some(chunk));
    }
}
