//! The port that clients reach: TLS, HTTP/1.1 and HTTP/2, limits on slow and greedy clients, orderly end.

mod discovery;
mod observe;
mod stall;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::AppState;
use crate::metrics::Connected;

pub(crate) use discovery::routes;
pub(crate) use observe::wrap;

/// Bounds on what clients may hold on to.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections in all; more wait in the kernel's queue.
    pub connections: usize,
    /// Connections of one address; more are closed at once.
    pub connections_per_address: usize,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For a request's head. HTTP/1.1 connections that are idle for as long are closed as well.
    pub head: Duration,
    /// A connection without any request under way for this long is closed.
    pub idle: Duration,
    /// A client that takes no byte of its answer for this long is cut off.
    pub stalled_write: Duration,
    /// For requests that are under way when the daemon ends.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 4096,
            connections_per_address: 1024,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            idle: Duration::from_secs(75),
            stalled_write: Duration::from_secs(60),
            drain: Duration::from_secs(5),
        }
    }
}

/// The address that a request came from.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Serves the cloud's APIs on these listeners until `shutdown`, then lets requests under way end.
///
/// # Errors
/// If a listener fails for good.
pub async fn serve(
    listeners: Vec<TcpListener>,
    tls: Option<Arc<rustls::ServerConfig>>,
    state: AppState,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_with(listeners, tls, state, shutdown, Limits::default()).await
}

/// [`serve`] with other limits.
///
/// # Errors
/// If a listener fails for good.
pub async fn serve_with(
    listeners: Vec<TcpListener>,
    tls: Option<Arc<rustls::ServerConfig>>,
    state: AppState,
    shutdown: CancellationToken,
    limits: Limits,
) -> io::Result<()> {
    let follower = tokio::spawn(count_writes(state.clone(), shutdown.clone()));
    let edge = Arc::new(Edge {
        slots: Arc::new(Semaphore::new(limits.connections)),
        addresses: Mutex::default(),
        tls: tls.map(TlsAcceptor::from),
        router: crate::router(state.clone()),
        shutdown: shutdown.clone(),
        state,
        limits,
    });
    let tasks = TaskTracker::new();
    let loops = listeners
        .into_iter()
        .map(|listener| edge.clone().accept(listener, tasks.clone()));
    let ended = futures::future::try_join_all(loops).await;
    shutdown.cancel();
    tasks.close();
    if tokio::time::timeout(edge.limits.drain + Duration::from_secs(1), tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!(connections = tasks.len(), "connections cut off at the end");
    }
    let _ = follower.await;
    ended.map(|_| ())
}

/// Counts the store's writes for `/metrics`.
async fn count_writes(state: AppState, shutdown: CancellationToken) {
    use tokio::sync::broadcast::error::RecvError;
    let mut events = state.cloud.store.subscribe();
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.recv() => event,
        };
        match event {
            Ok(event) => state.metrics.stored(event.index),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

struct Edge {
    slots: Arc<Semaphore>,
    addresses: Mutex<HashMap<IpAddr, usize>>,
    tls: Option<TlsAcceptor>,
    router: Router,
    shutdown: CancellationToken,
    state: AppState,
    limits: Limits,
}

/// One connection's place under the limits; given back when dropped.
struct Slot {
    edge: Arc<Edge>,
    address: IpAddr,
    _permit: OwnedSemaphorePermit,
    _connected: Connected,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut addresses = self.edge.addresses.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

impl Edge {
    async fn accept(self: Arc<Self>, listener: TcpListener, tasks: TaskTracker) -> io::Result<()> {
        loop {
            let permit = tokio::select! {
                () = self.shutdown.cancelled() => return Ok(()),
                permit = self.slots.clone().acquire_owned() => permit.map_err(io::Error::other)?,
            };
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                // One client's misfortune, or no descriptors for a moment: neither ends the listener.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Some(slot) = self.clone().admit(peer.ip(), permit) else {
                self.state.metrics.refused();
                continue;
            };
            let _ = stream.set_nodelay(true);
            tasks.spawn(self.clone().connection(stream, peer, slot));
        }
    }

    fn admit(self: Arc<Self>, address: IpAddr, permit: OwnedSemaphorePermit) -> Option<Slot> {
        {
            let mut addresses = self.addresses.lock().unwrap_or_else(|e| e.into_inner());
            let count = addresses.entry(address).or_default();
            if *count >= self.limits.connections_per_address {
                return None;
            }
            *count += 1;
        }
        let _connected = self.state.metrics.connected();
        Some(Slot {
            edge: self,
            address,
            _permit: permit,
            _connected,
        })
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, slot: Slot) {
        let stream = stall::Stall::new(stream, self.limits.stalled_write);
        match &self.tls {
            None => self.http(stream, peer).await,
            Some(acceptor) => {
                match tokio::time::timeout(self.limits.handshake, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => self.http(stream, peer).await,
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                    Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
                }
            }
        }
        drop(slot);
    }

    async fn http<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, io: I, peer: SocketAddr) {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head)
            .max_buf_size(64 * 1024);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20))
            .max_concurrent_streams(128)
            .max_header_list_size(32 * 1024);
        let activity = Arc::new(Activity::new());
        let router = self.router.clone();
        let seen = activity.clone();
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            let (router, under_way) = (router.clone(), seen.begin());
            async move {
                request.extensions_mut().insert(Peer(peer));
                let response = router.oneshot(request).await;
                drop(under_way);
                response
            }
        });
        let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = self.shutdown.cancelled() => None,
            () = activity.idle_for(self.limits.idle) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(self.limits.drain, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }
}

/// When a connection was last used.
struct Activity {
    start: Instant,
    under_way: AtomicUsize,
    /// Milliseconds after `start`.
    last: AtomicU64,
}

struct UnderWay(Arc<Activity>);

impl Activity {
    fn new() -> Self {
        Activity {
            start: Instant::now(),
            under_way: AtomicUsize::new(0),
            last: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    /// Ends once no request was under way for this long.
    async fn idle_for(&self, limit: Duration) {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        loop {
            let idle = self.now().saturating_sub(self.last.load(Ordering::Relaxed));
            let busy = self.under_way.load(Ordering::Relaxed) > 0;
            if !busy && idle >= limit {
                return;
            }
            let wait = if busy { limit } else { limit - idle };
            tokio::time::sleep(Duration::from_millis(wait.max(1))).await;
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.last.store(self.0.now(), Ordering::Relaxed);
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
