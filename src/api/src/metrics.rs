//! What Prometheus reads at `/metrics`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::fault::Service;

/// Counters of this daemon. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    latency: Family<ServiceLabels, Histogram>,
    tokens: Family<ResultLabels, Counter>,
    connections: Gauge,
    refused: Counter,
    panics: Counter,
    store_writes: Counter,
    store_index: Gauge,
    guests: Family<StateLabels, Gauge>,
    pool_total: Gauge,
    pool_free: Gauge,
    switch_connections: Gauge,
    switch_drops: Family<ReasonLabels, Gauge>,
    catalogue: Family<ImageLabels, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    service: &'static str,
    method: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabels {
    service: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ImageLabels {
    image: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: String,
}

/// Upper bounds of the latency histogram in seconds.
const BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];

impl Default for Metrics {
    fn default() -> Self {
        let inner = Inner {
            registry: Mutex::new(Registry::with_prefix("allod")),
            requests: Family::default(),
            latency: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            tokens: Family::default(),
            connections: Gauge::default(),
            refused: Counter::default(),
            panics: Counter::default(),
            store_writes: Counter::default(),
            store_index: Gauge::default(),
            guests: Family::default(),
            pool_total: Gauge::default(),
            pool_free: Gauge::default(),
            switch_connections: Gauge::default(),
            switch_drops: Family::default(),
            catalogue: Family::default(),
        };
        let metrics = Metrics(Arc::new(inner));
        let m = &metrics.0;
        metrics.register(|r| {
            r.register("api_requests", "Requests answered", m.requests.clone());
            r.register(
                "api_request_seconds",
                "Time until the answer's head",
                m.latency.clone(),
            );
            r.register(
                "api_connections",
                "Open client connections",
                m.connections.clone(),
            );
            r.register(
                "api_connections_refused",
                "Connections over the limit of one address",
                m.refused.clone(),
            );
            r.register("api_panics", "Handlers that panicked", m.panics.clone());
            r.register("token_validations", "Tokens checked", m.tokens.clone());
            r.register("store_writes", "Acknowledged writes", m.store_writes.clone());
            r.register(
                "store_index",
                "The last acknowledged write's place in the log",
                m.store_index.clone(),
            );
            r.register("guests", "Guests of this node by power state", m.guests.clone());
            r.register("pool_bytes", "Size of the volume pool", m.pool_total.clone());
            r.register(
                "pool_free_bytes",
                "Free space of the volume pool",
                m.pool_free.clone(),
            );
            r.register(
                "switch_connections",
                "Connections that the switch tracks",
                m.switch_connections.clone(),
            );
            r.register(
                "switch_dropped_frames",
                "Frames that the switch dropped",
                m.switch_drops.clone(),
            );
            r.register(
                "image_catalogue_fresh",
                "Images of the catalogue: 1 if what the vendor has is there, 0 if not",
                m.catalogue.clone(),
            );
        });
        metrics
    }
}

impl Metrics {
    /// Adds metrics of other parts of the daemon.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.0.registry.lock().unwrap_or_else(|e| e.into_inner()));
    }

    pub(crate) fn answered(&self, service: Service, method: &http::Method, status: u16, took: Duration) {
        // Methods that nobody serves share a label, so that clients cannot make labels up.
        let method = match method.as_str() {
            "GET" => "GET",
            "HEAD" => "HEAD",
            "POST" => "POST",
            "PUT" => "PUT",
            "PATCH" => "PATCH",
            "DELETE" => "DELETE",
            _ => "other",
        };
        self.0
            .requests
            .get_or_create(&RequestLabels {
                service: service.name(),
                method,
                status,
            })
            .inc();
        self.0
            .latency
            .get_or_create(&ServiceLabels {
                service: service.name(),
            })
            .observe(took.as_secs_f64());
    }

    pub(crate) fn token_validated(&self, ok: bool) {
        let result = if ok { "valid" } else { "invalid" };
        self.0.tokens.get_or_create(&ResultLabels { result }).inc();
    }

    pub(crate) fn connected(&self) -> Connected {
        self.0.connections.inc();
        Connected(self.clone())
    }

    pub(crate) fn refused(&self) {
        self.0.refused.inc();
    }

    pub(crate) fn panicked(&self) {
        self.0.panics.inc();
    }

    pub(crate) fn stored(&self, index: u64) {
        self.0.store_writes.inc();
        self.0.store_index.set(i64::try_from(index).unwrap_or(i64::MAX));
    }

    /// Asks the node's drivers, each for at most a second, and writes everything as text.
    pub(crate) async fn scrape(&self, cloud: &cloud::Cloud) -> String {
        use model::machine::PowerState;
        let wait = Duration::from_secs(1);
        let drivers = &cloud.drivers;
        let (machines, pool, switch) = tokio::join!(
            tokio::time::timeout(wait, drivers.machines.list()),
            tokio::time::timeout(wait, drivers.disks.usage()),
            tokio::time::timeout(wait, drivers.switch.status()),
        );
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        if let Ok(Ok(machines)) = machines {
            for (state, name) in [
                (PowerState::Running, "running"),
                (PowerState::Paused, "paused"),
                (PowerState::Shutdown, "shutdown"),
                (PowerState::Crashed, "crashed"),
            ] {
                let count = machines.iter().filter(|(_, s)| *s == state).count();
                self.0
                    .guests
                    .get_or_create(&StateLabels { state: name })
                    .set(gauge(count as u64));
            }
        }
        if let Ok(Ok(pool)) = pool {
            self.0.pool_total.set(gauge(pool.total));
            self.0.pool_free.set(gauge(pool.free));
        }
        if let Ok(Ok(status)) = switch {
            self.0.switch_connections.set(gauge(status.connections));
            for (reason, count) in status.drops {
                self.0
                    .switch_drops
                    .get_or_create(&ReasonLabels { reason })
                    .set(gauge(count));
            }
        }
        if let Ok(entries) = cloud::image::catalogue::known(cloud).await {
            self.0.catalogue.clear();
            for entry in entries.into_iter().filter(|entry| entry.state != "retired") {
                let fresh = i64::from(entry.state == "available");
                let labels = ImageLabels { image: entry.name };
                self.0.catalogue.get_or_create(&labels).set(fresh);
            }
        }
        let mut out = String::new();
        let registry = self.0.registry.lock().unwrap_or_else(|e| e.into_inner());
        if let Err(error) = text::encode(&mut out, &registry) {
            tracing::error!(%error, "metrics could not be written");
        }
        out
    }
}

/// Counts one open connection while it lives.
pub(crate) struct Connected(Metrics);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.0.connections.dec();
    }
}
