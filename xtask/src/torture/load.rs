//! Clients that write through the API without pause, and remember what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::Duration;

use allod_tests::cloud::Cloud;
use allod_tests::http::{Client, Trust};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// What a client makes and deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Identity.
    Project,
    /// Network.
    Network,
    /// Compute.
    Keypair,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 3] = [Kind::Project, Kind::Network, Kind::Keypair];

    fn path(self) -> &'static str {
        match self {
            Kind::Project => "/identity/v3/projects",
            Kind::Network => "/network/v2.0/networks",
            Kind::Keypair => "/compute/v2.1/os-keypairs",
        }
    }

    /// Makes one; gives what deletes it.
    fn create(self, client: &mut Client, name: &str) -> Result<String> {
        let (body, status) = match self {
            Kind::Project => (json!({"project": {"name": name}}), 201),
            Kind::Network => (json!({"network": {"name": name}}), 201),
            Kind::Keypair => (json!({"keypair": {"name": name, "public_key": PUBLIC_KEY}}), 200),
        };
        let answer = client
            .request("POST", self.path(), Some(&body))?
            .expect(status)
            .map_err(Refused)?;
        let body = answer.json()?;
        let id = match self {
            Kind::Project => &body["project"]["id"],
            Kind::Network => &body["network"]["id"],
            Kind::Keypair => &body["keypair"]["name"],
        };
        Ok(id.as_str().context("no id in the answer")?.to_owned())
    }

    fn delete(self, client: &mut Client, id: &str) -> Result<()> {
        let status = if self == Kind::Keypair { 202 } else { 204 };
        client
            .request("DELETE", &format!("{}/{id}", self.path()), None)?
            .expect(status)
            .map_err(Refused)?;
        Ok(())
    }

    /// The names of all that are there.
    pub fn list(self, client: &mut Client) -> Result<BTreeSet<String>> {
        let body = client.request("GET", self.path(), None)?.expect(200)?.json()?;
        let (list, inner) = match self {
            Kind::Project => ("projects", None),
            Kind::Network => ("networks", None),
            Kind::Keypair => ("keypairs", Some("keypair")),
        };
        let list = body[list].as_array().context("no list in the answer")?;
        let name = |item: &Value| {
            inner.map_or(item, |inner| &item[inner])["name"]
                .as_str()
                .map(str::to_owned)
        };
        Ok(list.iter().filter_map(name).collect())
    }
}

const PUBLIC_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJunSCg9usr50zIgJH5jiopTetRrqazVo1h7dOyadYfe load";

/// An answer that refuses: the daemon lives, and it is wrong.
#[derive(Debug)]
struct Refused(anyhow::Error);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Refused {}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    /// Its creation was acknowledged; this deletes it.
    There(String),
    /// Its deletion was acknowledged.
    Gone,
    /// The daemon died before it answered: both are right.
    Unknown,
}

/// The load and what was promised to it.
#[derive(Debug)]
pub struct Load {
    address: SocketAddr,
    trust: Trust,
    token: String,
    names: Mutex<BTreeMap<(Kind, String), Known>>,
    /// Held for reading during a request, for writing while the promises are compared.
    quiet: RwLock<()>,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Load {
    /// For a cloud that runs.
    pub fn new(cloud: &Cloud, token: String) -> Result<Self> {
        Ok(Self {
            address: cloud.listen(),
            trust: cloud.trust()?,
            token,
            names: Mutex::default(),
            quiet: RwLock::default(),
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            wrong: Mutex::default(),
        })
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Clients end after their request.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// One client, until it is stopped. It runs in the cloud's namespace.
    pub fn client(&self, number: usize) {
        let mut client = None;
        let mut serial = 0u64;
        let mut mine: BTreeMap<Kind, Vec<String>> = BTreeMap::new();
        while !self.stop.load(Ordering::Relaxed) {
            let Some(connected) = &mut client else {
                match self.connect() {
                    Ok(connected) => client = Some(connected),
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
                continue;
            };
            let kind = Kind::ALL[usize::try_from(serial).unwrap_or(0) % Kind::ALL.len()];
            let live = mine.entry(kind).or_default();
            let guard = self.quiet.read().unwrap_or_else(|e| e.into_inner());
            // Few are alive at a time: quotas, and the lists that are compared, stay small.
            let done = if live.len() >= 4 {
                let name = live.remove(0);
                self.delete(connected, kind, name)
            } else {
                serial += 1;
                let name = format!("load-{number}-{serial}");
                self.create(connected, kind, name.clone())
                    .inspect(|()| live.push(name))
            };
            drop(guard);
            match done {
                Ok(()) => {
                    self.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    if let Some(refused) = error.downcast_ref::<Refused>() {
                        self.wrong
                            .lock()
                            .unwrap_or_else(|e| e.into_inner())
                            .push(refused.to_string());
                        thread::sleep(Duration::from_millis(50));
                    }
                    client = None;
                }
            }
        }
    }

    fn connect(&self) -> Result<Client> {
        let mut client = Client::connect(self.address, &self.trust, Duration::from_secs(20))?;
        client.set_token(&self.token);
        Ok(client)
    }

    fn create(&self, client: &mut Client, kind: Kind, name: String) -> Result<()> {
        let result = kind.create(client, &name);
        let known = match &result {
            Ok(id) => Known::There(id.clone()),
            Err(_) => Known::Unknown,
        };
        self.remember(kind, name, known);
        result.map(drop)
    }

    fn delete(&self, client: &mut Client, kind: Kind, name: String) -> Result<()> {
        let id = match self
            .names
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .get(&(kind, name.clone()))
        {
            Some(Known::There(id)) => id.clone(),
            _ => return Ok(()),
        };
        let result = kind.delete(client, &id);
        self.remember(
            kind,
            name,
            if result.is_ok() {
                Known::Gone
            } else {
                Known::Unknown
            },
        );
        result
    }

    fn remember(&self, kind: Kind, name: String, known: Known) {
        self.names
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .insert((kind, name), known);
    }

    /// Compares what is there with what was acknowledged. Nobody writes meanwhile.
    pub fn compare(&self, mut client: Client) -> Result<()> {
        let _quiet = self.quiet.write().unwrap_or_else(|e| e.into_inner());
        client.set_token(&self.token);
        let mut lists = BTreeMap::new();
        for kind in Kind::ALL {
            lists.insert(kind, kind.list(&mut client)?);
        }
        let names = self.names.lock().unwrap_or_else(|e| e.into_inner());
        let mut wrong = Vec::new();
        for ((kind, name), known) in names.iter() {
            let there = lists[kind].contains(name);
            match known {
                Known::There(_) if !there => {
                    wrong.push(format!("{kind:?} {name} was acknowledged and is lost"))
                }
                Known::Gone if there => wrong.push(format!("{kind:?} {name} was deleted and is back")),
                _ => {}
            }
        }
        if !wrong.is_empty() {
            bail!(
                "{} acknowledged writes are lost, such as: {}",
                wrong.len(),
                wrong[..wrong.len().min(5)].join("; ")
            );
        }
        let refused = self.wrong.lock().unwrap_or_else(|e| e.into_inner());
        ensure!(
            refused.is_empty(),
            "{} requests were refused, such as: {}",
            refused.len(),
            refused[0]
        );
        Ok(())
    }
}
