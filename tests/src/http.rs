//! A small HTTP/1.1 client over TLS, for what the `openstack` client is too slow or too well-behaved for: load, and
//! requests that no proper client sends. One connection, kept alive; no redirects, no pipelining.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

/// The CA that a cloud is verified with.
pub type Trust = Arc<ClientConfig>;

/// Reads a CA's certificate.
pub fn trust(ca: &Path) -> Result<Trust> {
    let pem = fs::read(ca).with_context(|| format!("cannot read {}", ca.display()))?;
    let mut roots = RootCertStore::empty();
    for certificate in rustls::pki_types::CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.context("not a certificate in PEM")?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(
        config.with_root_certificates(roots).with_no_client_auth(),
    ))
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of this name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| {
            format!(
                "{} is not JSON: {}",
                self.status,
                String::from_utf8_lossy(&self.body)
            )
        })
    }

    /// This answer, if its status is that one.
    pub fn expect(self, status: u16) -> Result<Self> {
        ensure!(
            self.status == status,
            "the answer is {} instead of {status}: {}",
            self.status,
            String::from_utf8_lossy(&self.body)
        );
        Ok(self)
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
    host: String,
    token: Option<String>,
}

impl Client {
    /// Connects; each read or write may take this long.
    pub fn connect(address: SocketAddr, trust: &Trust, limit: Duration) -> Result<Self> {
        let tcp = TcpStream::connect_timeout(&address, limit)
            .with_context(|| format!("cannot connect to {address}"))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(limit))?;
        tcp.set_write_timeout(Some(limit))?;
        let name = ServerName::from(address.ip());
        let tls = ClientConnection::new(trust.clone(), name)?;
        Ok(Self {
            stream: BufReader::new(StreamOwned::new(tls, tcp)),
            host: address.to_string(),
            token: None,
        })
    }

    /// Sends this token from now on.
    pub fn set_token(&mut self, token: &str) {
        self.token = Some(token.to_owned());
    }

    /// Sends a request with a JSON body, or none, and reads the answer.
    pub fn request(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let body = body.map(Value::to_string);
        let body = body.as_deref().map(|b| ("application/json", b.as_bytes()));
        self.send(method, path, &[], body)
    }

    /// Sends a request with these headers and this body (type, bytes), and reads the answer.
    pub fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<(&str, &[u8])>,
    ) -> Result<Answer> {
        let mut text = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAccept: application/json\r\n",
            self.host
        );
        if let Some(token) = &self.token {
            text += &format!("X-Auth-Token: {token}\r\n");
        }
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        if let Some((kind, bytes)) = body {
            text += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", bytes.len());
        }
        text += "\r\n";
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(body.map_or(&[][..], |(_, b)| b));
        self.stream.get_mut().write_all(&bytes)?;
        self.stream.get_mut().flush()?;
        self.answer(method)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the connection was closed");
        }
        Ok(line.trim_end().to_owned())
    }

    fn answer(&mut self, method: &str) -> Result<Answer> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.with_context(|| format!("not an HTTP status: {first}"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut answer = Answer {
            status,
            headers,
            body: Vec::new(),
        };
        if method == "HEAD" || status == 204 || status == 304 {
            return Ok(answer);
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = self.line()?;
                let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)?;
                let mut chunk = vec![0; size];
                self.stream.read_exact(&mut chunk)?;
                answer.body.extend_from_slice(&chunk);
                self.line()?;
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = answer.header("content-length") {
            answer.body = vec![0; length.parse()?];
            self.stream.read_exact(&mut answer.body)?;
        }
        Ok(answer)
    }
}
