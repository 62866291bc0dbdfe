//! `cargo xtask bench api`: the daemon at rest and under requests.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use allod_tests::cloud::{ADMIN, Cloud, Options};
use allod_tests::host::{Process, wait_for};
use allod_tests::http::Client;
use allod_tests::netns;
use allod_tests::tenant::{self, BOOT, Tenant};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::figure::Figure;
use crate::measure::{cpu_seconds, fsyncs_per_second, median, pss_mib};

/// How long guests stay idle while processor time is counted.
const IDLE: Duration = Duration::from_secs(60);
/// How long writes are counted, in each of the turns.
const WRITES: Duration = Duration::from_secs(3);
const TURNS: usize = 3;
/// Requests per measurement of a latency.
const REQUESTS: usize = 500;
/// Servers of the simulated engine.
const SERVERS: usize = 1_000;

/// All figures but the list of many servers.
pub fn run() -> Result<()> {
    let mut cloud = start_times()?;
    tokens(&cloud)?;
    writes(&cloud, 1)?;
    writes(&cloud, 64)?;
    boot(&cloud)?;
    idle(&mut cloud)?;
    cloud.end()
}

/// From the start of the program to the first answer: with an empty directory, and with one in use.
fn start_times() -> Result<Cloud> {
    let mut cloud = Cloud::prepare(Options::default())?;
    let began = Instant::now();
    cloud.serve()?;
    Figure::new("api.start.first", began.elapsed().as_secs_f64(), "s").report()?;
    let mut again = Vec::new();
    for _ in 0..5 {
        cloud.terminate_daemon()?;
        let began = Instant::now();
        cloud.serve()?;
        again.push(began.elapsed().as_secs_f64());
    }
    Figure::new("api.start.again", median(again), "s").report()?;
    Ok(cloud)
}

/// A connection with an administrator's token.
fn client(cloud: &Cloud) -> Result<(Client, String)> {
    let mut client = cloud.client()?;
    let token = cloud.field(ADMIN, &["token", "issue"], "id")?;
    client.set_token(&token);
    Ok((client, token))
}

/// The median time of a request, in microseconds.
fn latency(mut request: impl FnMut() -> Result<()>) -> Result<f64> {
    for _ in 0..REQUESTS / 10 {
        request()?;
    }
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let began = Instant::now();
        request()?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(times))
}

/// Validation of a token, as other services ask for it; the peer is the same connection's emptiest answer.
fn tokens(cloud: &Cloud) -> Result<()> {
    let (mut client, token) = client(cloud)?;
    let floor = latency(|| client.request("GET", "/healthz", None)?.expect(200).map(drop))?;
    let subject = [("X-Subject-Token", token.as_str())];
    let validation = latency(|| {
        client
            .send("GET", "/identity/v3/auth/tokens", &subject, None)?
            .expect(200)
            .map(drop)
    })?;
    Figure::new("api.token.validate", validation, "us")
        .versus("healthz", floor)
        .report()
}

/// Acknowledged writes per second of this many clients, turn by turn with the disk's own rate of durable appends.
fn writes(cloud: &Cloud, clients: usize) -> Result<()> {
    let (_, token) = client(cloud)?;
    let trust = cloud.trust()?;
    let place = cloud.netns().context("benches run in a namespace")?.path();
    let address = cloud.listen();
    let (mut ours, mut disk) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        disk.push(fsyncs_per_second(&cloud.state(), WRITES / 3)?);
        let (count, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let connected = AtomicU64::new(0);
        let one = |number: usize| -> Result<()> {
            netns::join(&place)?;
            let mut client = Client::connect(address, &trust, Duration::from_secs(30))?;
            client.set_token(&token);
            connected.fetch_add(1, Ordering::Relaxed);
            while connected.load(Ordering::Relaxed) < clients as u64 && !stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
            }
            let mut serial = 0u64;
            while !stop.load(Ordering::Relaxed) {
                serial += 1;
                let body = json!({"project": {"name": format!("bench-{clients}-{turn}-{number}-{serial}")}});
                client
                    .request("POST", "/identity/v3/projects", Some(&body))?
                    .expect(201)?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let one = &one;
        let took = thread::scope(|scope| -> Result<f64> {
            let running: Vec<_> = (0..clients)
                .map(|number| scope.spawn(move || one(number)))
                .collect();
            let ready = wait_for("all clients", Duration::from_secs(30), || {
                Ok((connected.load(Ordering::Relaxed) == clients as u64).then_some(()))
            });
            let (began, before) = (Instant::now(), count.load(Ordering::Relaxed));
            if ready.is_ok() {
                thread::sleep(WRITES);
            }
            let rate = (count.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
            stop.store(true, Ordering::Relaxed);
            for client in running {
                client
                    .join()
                    .map_err(|_| anyhow::anyhow!("a client panicked"))??;
            }
            ready.map(|()| rate)
        })?;
        ours.push(took);
    }
    Figure::new(&format!("api.writes.{clients}"), median(ours), "/s")
        .versus("fsync", median(disk))
        .report()
}

/// From `POST /servers` to a login: the port has its floating IP before.
fn boot(cloud: &Cloud) -> Result<()> {
    tenant::prepare(cloud)?;
    let tenant = Tenant::new(cloud, "bench")?;
    tenant.network("10.0.0.0/24")?;
    tenant.ssh_group()?;
    let port = [
        "port",
        "create",
        "--network",
        "bench",
        "--security-group",
        "bench",
        "bench",
    ];
    let port = tenant.field(&port, "id")?;
    let address = tenant.field(
        &["floating", "ip", "create", "--port", &port, "ext-net"],
        "floating_ip_address",
    )?;
    let image = tenant.field(&["image", "show", tenant::IMAGE], "id")?;
    let flavor = tenant.field(&["flavor", "show", tenant::FLAVOR], "id")?;
    let token = tenant.field(&["token", "issue"], "id")?;
    let mut client = cloud.client()?;
    client.set_token(&token);
    let body = json!({"server": {"name": "first", "imageRef": image, "flavorRef": flavor, "key_name": "bench",
        "networks": [{"port": port}]}});
    let began = Instant::now();
    client
        .request("POST", "/compute/v2.1/servers", Some(&body))?
        .expect(202)?;
    Figure::new("api.server.accept", began.elapsed().as_secs_f64() * 1e3, "ms").report()?;
    let guest = SocketAddr::new(address.parse::<IpAddr>()?, 22);
    cloud.enter(|| {
        wait_for("the guest's SSH port", BOOT, || {
            Ok(TcpStream::connect_timeout(&guest, Duration::from_secs(1)).ok())
        })
    })?;
    tenant.ssh(&address, "true")?;
    Figure::new("api.server.login", began.elapsed().as_secs_f64(), "s").report()?;
    tenant.server("second", &["bench"], &["--network", "bench"])?;
    let second = tenant.floating_ip("second")?;
    tenant.wait_for_ssh("second", &second)
}

/// Memory and processor time of daemon and switch with two idle guests.
fn idle(cloud: &mut Cloud) -> Result<()> {
    // Until what the start of the guests set going has come to rest.
    thread::sleep(Duration::from_secs(15));
    let processes = cloud.processes();
    let find = |what: &str| -> Result<i32> {
        let found: Vec<&Process> = processes.iter().filter(|p| is(p, what)).collect();
        ensure!(
            found.len() == 1,
            "{} processes are `allod {what}`: {processes:?}",
            found.len()
        );
        Ok(found[0].pid)
    };
    let (daemon, switch) = (find("serve")?, find("switch")?);
    let (mut all, mut machines) = (Vec::new(), Vec::new());
    for process in &processes {
        if process.command.contains("qemu-system") {
            machines.push(process.pid)
        } else {
            all.push(process.pid)
        }
    }
    ensure!(!machines.is_empty(), "no guest runs: {processes:?}");
    let sum = |pids: &[i32]| pids.iter().map(|pid| cpu_seconds(*pid)).sum::<Result<f64>>();
    let groups = [vec![daemon, switch], all, machines];
    let before: Vec<f64> = groups.iter().map(|g| sum(g)).collect::<Result<_>>()?;
    thread::sleep(IDLE);
    let after: Vec<f64> = groups.iter().map(|g| sum(g)).collect::<Result<_>>()?;
    let percent = |index: usize| (after[index] - before[index]) / IDLE.as_secs_f64() * 100.0;
    Figure::new("api.idle.cpu", percent(0), "%").report()?;
    Figure::new("api.idle.cpu.with-disks", percent(1), "%").report()?;
    Figure::new("api.idle.cpu.machines", percent(2), "%").report()?;
    Figure::new("api.idle.pss.daemon", pss_mib(daemon)?, "MiB").report()?;
    Figure::new("api.idle.pss.switch", pss_mib(switch)?, "MiB").report()?;
    Figure::new("api.idle.pss", pss_mib(daemon)? + pss_mib(switch)?, "MiB").report()
}

/// Whether a process is `allod WHAT`: the daemon under its own name, children as the daemon starts itself again.
fn is(process: &Process, what: &str) -> bool {
    let mut words = process.command.split(' ');
    words
        .next()
        .is_some_and(|w| w.ends_with("allod") || w == "/proc/self/exe")
        && words.next() == Some(what)
}

/// `GET /servers/detail` with many servers, which a test-only engine pretends to run.
pub fn many_servers(program: PathBuf) -> Result<()> {
    let options = Options {
        program,
        compute: "engine = \"simulated\"\n".into(),
        ..Options::default()
    };
    let cloud = Cloud::start(options)?;
    tenant::prepare(&cloud)?;
    let project = cloud.field(ADMIN, &["project", "show", "admin"], "id")?;
    let unlimited = [
        "--instances",
        "-1",
        "--cores",
        "-1",
        "--ram",
        "-1",
        "--ports",
        "-1",
    ];
    cloud.openstack(
        ADMIN,
        &[&["quota", "set"], &unlimited[..], &[project.as_str()]].concat(),
    )?;
    cloud.openstack(ADMIN, &["network", "create", "many"])?;
    cloud.openstack(
        ADMIN,
        &[
            "subnet",
            "create",
            "--network",
            "many",
            "--subnet-range",
            "10.0.0.0/16",
            "many",
        ],
    )?;
    let network = cloud.field(ADMIN, &["network", "show", "many"], "id")?;
    let image = cloud.field(ADMIN, &["image", "show", tenant::IMAGE], "id")?;
    let flavor = cloud.field(ADMIN, &["flavor", "show", tenant::FLAVOR], "id")?;
    let (mut client, _) = client(&cloud)?;
    for number in 0..SERVERS {
        let body = json!({"server": {"name": format!("many-{number}"), "imageRef": image, "flavorRef": flavor,
            "networks": [{"uuid": network}]}});
        client
            .request("POST", "/compute/v2.1/servers", Some(&body))?
            .expect(202)?;
    }
    let path = format!("/compute/v2.1/servers/detail?limit={SERVERS}");
    let active = |body: &Value| {
        body["servers"]
            .as_array()
            .map_or(0, |s| s.iter().filter(|s| s["status"] == "ACTIVE").count())
    };
    wait_for("all servers", Duration::from_secs(300), || {
        let body = client.request("GET", &path, None)?.expect(200)?.json()?;
        Ok((active(&body) == SERVERS).then_some(()))
    })?;
    let mut times = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        client.request("GET", &path, None)?.expect(200)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Figure::new("api.servers.1000", median(times), "ms").report()?;
    cloud.end()
}
