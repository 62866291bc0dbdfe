//! The API over a test cloud, request by request.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use cloud::testing::{self, TestCloud};
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::AppState;

struct Api {
    test: TestCloud,
    router: Router,
    admin: String,
    member: String,
    reader: String,
    project: String,
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Api {
    async fn new() -> Api {
        let test = testing::cloud().await;
        cloud::network::bootstrap(&test.cloud).await.unwrap();
        let router = crate::router(AppState::new(test.cloud.clone()));
        let admin = test.admin_token().await;
        let member = test.token("mia", "shop", "member").await;
        let reader = test.token("rob", "shop", "reader").await;
        let context = test.cloud.identity.validate(&member).unwrap();
        let project = context.project().unwrap().to_owned();
        Api { test, router, admin, member, reader, project }
    }

    /// With the loops of network and compute.
    async fn running() -> Api {
        let api = Api::new().await;
        cloud::network::spawn(api.test.cloud.clone());
        cloud::compute::spawn(api.test.cloud.clone());
        api
    }

    async fn ask(&self, token: &str, version: &str, method: &str, path: &str, body: Option<Value>) -> Reply {
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(format!("/compute/v2.1{path}"))
            .header("content-type", "application/json");
        if !token.is_empty() {
            request = request.header("x-auth-token", token);
        }
        if !version.is_empty() {
            request = request.header("openstack-api-version", format!("compute {version}"));
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        self.send(request.body(body).unwrap()).await
    }

    async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Reply { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, version: &str, path: &str) -> Value {
        let reply = self.ask(&self.member, version, "GET", path, None).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        reply.body
    }

    async fn admin(&self, version: &str, method: &str, path: &str, body: Option<Value>) -> Reply {
        self.ask(&self.admin, version, method, path, body).await
    }

    async fn member(&self, version: &str, method: &str, path: &str, body: Option<Value>) -> Reply {
        self.ask(&self.member, version, method, path, body).await
    }

    /// An image of one MiB.
    async fn image(&self) -> String {
        let body = json!({"name": "img", "disk_format": "raw", "container_format": "bare"});
        let request = |method: &str, path: &str, kind: &str, body: Body| {
            Request::builder()
                .method(method)
                .uri(format!("/image/v2{path}"))
                .header("x-auth-token", &self.member)
                .header("content-type", kind)
                .body(body)
                .unwrap()
        };
        let made = self.send(request("POST", "/images", "application/json", body.to_string().into())).await;
        let id = made.body["id"].as_str().unwrap().to_owned();
        let file = request("PUT", &format!("/images/{id}/file"), "application/octet-stream", vec![0; 1 << 20].into());
        assert!(self.send(file).await.status.is_success());
        let mut events = self.test.cloud.store.subscribe();
        loop {
            let shown = self.send(request("GET", &format!("/images/{id}"), "", Body::empty())).await;
            match shown.body["status"].as_str() {
                Some("active") => return id,
                Some("killed") => panic!("{}", shown.body),
                _ => drop(events.recv().await),
            }
        }
    }

    async fn server(&self, image: &str, name: &str, more: Value) -> String {
        let mut server = json!({"name": name, "imageRef": image, "flavorRef": "SCS-1L-1", "networks": "none"});
        for (key, value) in more.as_object().unwrap() {
            server[key] = value.clone();
        }
        let made = self.member("2.96", "POST", "/servers", Some(json!({"server": server}))).await;
        assert_eq!(made.status, 202, "{}", made.body);
        made.body["server"]["id"].as_str().unwrap().to_owned()
    }

    /// Waits on the store's events until the server has this status.
    async fn until(&self, id: &str, status: &str) -> Value {
        let mut events = self.test.cloud.store.subscribe();
        let wait = async {
            loop {
                let server = self.get("2.96", &format!("/servers/{id}")).await["server"].take();
                if server["status"] == status && server["OS-EXT-STS:task_state"].is_null() {
                    return server;
                }
                let _ = events.recv().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), wait).await.expect(status)
    }
}

#[tokio::test]
async fn versions_are_negotiated_and_told() {
    let api = Api::new().await;
    let one = api.ask("", "", "GET", "", None).await;
    assert_eq!(one.body["version"]["version"], "2.96");
    assert_eq!(one.body["version"]["min_version"], "2.1");
    assert!(one.body["version"]["links"][0]["href"].as_str().unwrap().ends_with("/compute/v2.1/"));
    let root = Request::get("/compute/").body(Body::empty()).unwrap();
    assert_eq!(api.send(root).await.body["versions"][0]["id"], "v2.1");

    let reply = api.member("2.53", "GET", "/flavors", None).await;
    assert_eq!(reply.headers["openstack-api-version"], "compute 2.53");
    assert_eq!(reply.headers["x-openstack-nova-api-version"], "2.53");
    assert!(reply.headers["vary"].to_str().unwrap().contains("OpenStack-API-Version"));
    assert!(reply.headers["x-compute-request-id"].to_str().unwrap().starts_with("req-"));
    assert_eq!(api.member("", "GET", "/flavors", None).await.headers["openstack-api-version"], "compute 2.1");
    assert_eq!(api.member("latest", "GET", "/flavors", None).await.headers["openstack-api-version"], "compute 2.96");
    let reply = api.member("2.97", "GET", "/flavors", None).await;
    assert_eq!((reply.status.as_u16(), &reply.body["computeFault"]["code"]), (406, &json!(406)));
    assert_eq!(api.member("2.x", "GET", "/flavors", None).await.status, 400);
    assert_eq!(api.ask("", "2.1", "GET", "/servers", None).await.status, 401);
}

#[tokio::test]
async fn the_scs_flavors_are_there_from_the_start() {
    let api = Api::new().await;
    let list = api.get("2.96", "/flavors/detail").await;
    let flavors = list["flavors"].as_array().unwrap();
    assert_eq!(flavors.len(), 15);
    for (name, vcpus, ram, disk, cpu, disk_type) in [
        ("SCS-1V-4", 1, 4096, 0, "shared-core", None),
        ("SCS-4V-16-100s", 4, 16384, 100, "shared-core", Some("ssd")),
        ("SCS-2V-4-20s", 2, 4096, 20, "shared-core", Some("ssd")),
        ("SCS-16V-32", 16, 32768, 0, "shared-core", None),
        ("SCS-1L-1", 1, 1024, 0, "crowded-core", None),
    ] {
        let flavor = flavors.iter().find(|f| f["name"] == name).unwrap();
        assert_eq!((&flavor["vcpus"], &flavor["ram"], &flavor["disk"]), (&json!(vcpus), &json!(ram), &json!(disk)));
        let mut specs = json!({"scs:name-v2": name, "scs:cpu-type": cpu});
        // Every dash after the first is a colon.
        specs["scs:name-v1"] = json!(format!("SCS-{}", name[4..].replace('-', ":")));
        if let Some(kind) = disk_type {
            specs["scs:disk0-type"] = json!(kind);
        }
        assert_eq!(flavor["extra_specs"], specs, "{name}");
    }
    // What older versions show.
    let old = api.get("2.1", "/flavors/SCS-1L-1").await;
    assert_eq!((&old["flavor"]["swap"], old["flavor"].get("extra_specs")), (&json!(""), None));
    assert!(old["flavor"].get("description").is_none());
    let new = api.get("2.75", "/flavors/SCS-1L-1").await;
    assert_eq!(new["flavor"]["swap"], json!(0));
    // Pages.
    let mut seen = Vec::new();
    let mut path = "/flavors?limit=4".to_owned();
    loop {
        let page = api.get("2.1", &path).await;
        seen.extend(page["flavors"].as_array().unwrap().iter().map(|f| f["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["flavors_links"][0]["href"].as_str() else { break };
        path = next.split_once("/compute/v2.1").unwrap().1.to_owned();
    }
    assert_eq!(seen.len(), 15);
    assert_eq!(api.get("2.1", "/flavors?minRam=32768").await["flavors"].as_array().unwrap().len(), 3);
    assert_eq!(api.member("2.75", "GET", "/flavors?bogus=1", None).await.status, 400);
    assert_eq!(api.member("2.74", "GET", "/flavors?bogus=1", None).await.status, 200);
}

#[tokio::test]
async fn admins_make_flavors_and_say_who_may_use_them() {
    let api = Api::new().await;
    let body = json!({"flavor": {"name": "tiny", "ram": 64, "vcpus": "1", "disk": 0, "id": "7",
        "os-flavor-access:is_public": false}});
    assert_eq!(api.member("2.1", "POST", "/flavors", Some(body.clone())).await.status, 403);
    let made = api.admin("2.1", "POST", "/flavors", Some(body.clone())).await;
    assert_eq!((made.status.as_u16(), &made.body["flavor"]["id"]), (200, &json!("7")));
    assert_eq!(api.admin("2.1", "POST", "/flavors", Some(body)).await.status, 409);
    assert_eq!(api.member("2.1", "GET", "/flavors/7", None).await.status, 404);
    let grant = json!({"addTenantAccess": {"tenant": api.project}});
    assert_eq!(api.admin("2.1", "POST", "/flavors/7/action", Some(grant.clone())).await.status, 200);
    assert_eq!(api.admin("2.1", "POST", "/flavors/7/action", Some(grant)).await.status, 409);
    assert_eq!(api.member("2.1", "GET", "/flavors/7", None).await.status, 200);
    let specs = json!({"extra_specs": {"a:b": "c"}});
    assert_eq!(api.admin("2.1", "POST", "/flavors/7/os-extra_specs", Some(specs.clone())).await.body, specs);
    assert_eq!(api.get("2.1", "/flavors/7/os-extra_specs/a:b").await, json!({"a:b": "c"}));
    assert_eq!(api.admin("2.1", "DELETE", "/flavors/7/os-extra_specs/a:b", None).await.status, 200);
    let gone = api.member("2.1", "GET", "/flavors/7/os-extra_specs/a:b", None).await;
    assert_eq!(gone.body["itemNotFound"]["message"], "Flavor 7 has no extra specs with key a:b.");
    assert_eq!(api.admin("2.1", "DELETE", "/flavors/7", None).await.status, 202);
    let gone = api.admin("2.1", "GET", "/flavors/7", None).await;
    assert_eq!(gone.body, json!({"itemNotFound": {"code": 404, "message": "Flavor 7 could not be found."}}));
    for bad in [
        json!({"flavor": {"name": "x", "ram": 0, "vcpus": 1, "disk": 0}}),
        json!({"flavor": {"name": "", "ram": 1, "vcpus": 1, "disk": 0}}),
        json!({"flavor": {"name": "x", "ram": 1, "vcpus": 1}}),
        json!({"flavor": {"name": "x", "ram": 1, "vcpus": 1, "disk": 0, "description": "d"}}),
        json!({"flavor": {"name": "x", "ram": 1, "vcpus": 1, "disk": 0, "swap": 1}}),
        json!({"flavor": "x"}),
    ] {
        assert_eq!(api.admin("2.1", "POST", "/flavors", Some(bad.clone())).await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn key_pairs_differ_by_version() {
    let api = Api::new().await;
    let generate = |name: &str| Some(json!({"keypair": {"name": name}}));
    let old = api.member("2.1", "POST", "/os-keypairs", generate("a")).await;
    assert_eq!(old.status, 200);
    assert!(old.body["keypair"].get("type").is_none());
    let key = &old.body["keypair"];
    assert!(key["private_key"].as_str().unwrap().starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"));
    assert_eq!(key["fingerprint"].as_str().unwrap().len(), 47);
    let new = api.member("2.2", "POST", "/os-keypairs", generate("b")).await;
    assert_eq!((new.status.as_u16(), &new.body["keypair"]["type"]), (201, &json!("ssh")));
    let public = key["public_key"].as_str().unwrap();
    let import = |name: &str| Some(json!({"keypair": {"name": name, "public_key": public}}));
    assert_eq!(api.member("2.91", "POST", "/os-keypairs", import("a@b.c")).await.status, 400);
    assert_eq!(api.member("2.92", "POST", "/os-keypairs", import("a@b.c")).await.status, 201);
    assert_eq!(api.member("2.92", "POST", "/os-keypairs", generate("c")).await.status, 400);
    let twice = api.member("2.2", "POST", "/os-keypairs", import("a")).await;
    assert_eq!(twice.body, json!({"conflictingRequest": {"code": 409, "message": "Key pair 'a' already exists."}}));
    let bad = json!({"keypair": {"name": "d", "public_key": "ssh-rsa nonsense"}});
    let bad = api.member("2.2", "POST", "/os-keypairs", Some(bad)).await;
    assert!(bad.body["badRequest"]["message"].as_str().unwrap().starts_with("Keypair data is invalid"));
    assert_eq!(api.get("2.1", "/os-keypairs").await["keypairs"].as_array().unwrap().len(), 3);
    assert_eq!(api.get("2.35", "/os-keypairs?limit=1").await["keypairs_links"][0]["rel"], "next");
    let shown = api.get("2.10", "/os-keypairs/a").await;
    assert_eq!(shown["keypair"]["deleted"], json!(false));
    assert!(shown["keypair"]["id"].is_u64());
    // Another user sees none of them; an admin asks by name of the user, from 2.10.
    let user = key["user_id"].as_str().unwrap();
    assert_eq!(api.admin("2.10", "GET", "/os-keypairs/a", None).await.status, 404);
    assert_eq!(api.admin("2.10", "GET", &format!("/os-keypairs/a?user_id={user}"), None).await.status, 200);
    assert_eq!(api.ask(&api.reader, "2.10", "GET", &format!("/os-keypairs?user_id={user}"), None).await.status, 403);
    assert_eq!(api.member("2.1", "DELETE", "/os-keypairs/a", None).await.status, 202);
    assert_eq!(api.member("2.2", "DELETE", "/os-keypairs/b", None).await.status, 204);
    assert_eq!(api.member("2.2", "DELETE", "/os-keypairs/b", None).await.status, 404);
}

#[tokio::test]
async fn a_server_from_creation_to_deletion() {
    let api = Api::running().await;
    let image = api.image().await;
    let network = Request::post("/network/v2.0/networks")
        .header("x-auth-token", &api.member)
        .header("content-type", "application/json")
        .body(Body::from(json!({"network": {"name": "net"}}).to_string()))
        .unwrap();
    let network = api.send(network).await.body["network"]["id"].as_str().unwrap().to_owned();
    let subnet = json!({"subnet": {"network_id": network, "cidr": "10.1.0.0/24", "ip_version": 4}});
    let subnet = Request::post("/network/v2.0/subnets")
        .header("x-auth-token", &api.member)
        .header("content-type", "application/json")
        .body(Body::from(subnet.to_string()))
        .unwrap();
    assert_eq!(api.send(subnet).await.status, 201);
    let body = json!({"server": {"name": "web", "imageRef": image, "flavorRef": "SCS-1L-1",
        "networks": [{"uuid": network}], "metadata": {"a": "b"}, "tags": ["t"], "description": "d",
        "user_data": "IyEvYmluL3NoCg==", "config_drive": true, "security_groups": [{"name": "default"}]}});
    let made = api.member("2.96", "POST", "/servers", Some(body)).await;
    assert_eq!(made.status, 202, "{}", made.body);
    let id = made.body["server"]["id"].as_str().unwrap().to_owned();
    assert!(made.headers["location"].to_str().unwrap().ends_with(&format!("/compute/v2.1/servers/{id}")));
    assert_eq!(made.body["server"]["adminPass"].as_str().unwrap().len(), 12);
    let server = api.until(&id, "ACTIVE").await;
    assert_eq!(server["addresses"]["net"][0]["OS-EXT-IPS:type"], "fixed");
    assert_eq!(server["addresses"]["net"][0]["version"], 4);
    assert_eq!(server["security_groups"], json!([{"name": "default"}]));
    assert_eq!(server["config_drive"], "True");
    assert_eq!(server["flavor"]["original_name"], "SCS-1L-1");
    assert_eq!(server["image"]["id"], image);
    assert_eq!(server["hostId"].as_str().unwrap().len(), 56);
    assert_eq!(server["OS-EXT-SRV-ATTR:hostname"], "web");
    assert!(server.get("OS-EXT-SRV-ATTR:host").is_none());
    let shown = api.admin("2.3", "GET", &format!("/servers/{id}"), None).await.body["server"].take();
    assert_eq!(shown["OS-EXT-SRV-ATTR:host"], "node1");
    assert_eq!(shown["OS-EXT-SRV-ATTR:user_data"], "IyEvYmluL3NoCg==");
    assert_eq!(shown["flavor"]["id"], "SCS-1L-1");
    for key in ["locked", "description", "tags", "locked_reason", "pinned_availability_zone", "host_status"] {
        assert!(shown.get(key).is_none(), "{key}");
    }
    // What the machine was given.
    let uuid: uuid::Uuid = id.parse().unwrap();
    let machine = api.test.drivers.state().machines[&uuid].0.clone();
    assert_eq!((machine.vcpus, machine.memory_mib, machine.nics.len(), machine.disks.len()), (1, 1024, 1, 1));
    assert_eq!(machine.disks[0].size, 1 << 30);
    let paths: Vec<&str> = machine.config_drive.iter().map(|f| f.path.as_str()).collect();
    assert!(paths.contains(&"openstack/latest/meta_data.json") && paths.contains(&"openstack/latest/user_data"));
    // Parts.
    assert_eq!(api.get("2.1", &format!("/servers/{id}/metadata/a")).await, json!({"meta": {"a": "b"}}));
    assert_eq!(api.get("2.26", &format!("/servers/{id}/tags")).await, json!({"tags": ["t"]}));
    assert_eq!(api.member("2.25", "GET", &format!("/servers/{id}/tags"), None).await.status, 404);
    assert_eq!(api.member("2.26", "PUT", &format!("/servers/{id}/tags/u"), None).await.status, 201);
    assert_eq!(api.member("2.26", "PUT", &format!("/servers/{id}/tags/u"), None).await.status, 204);
    let ports = api.get("2.96", &format!("/servers/{id}/os-interface")).await;
    assert_eq!(ports["interfaceAttachments"][0]["net_id"], network);
    assert_eq!(api.get("2.1", &format!("/servers/{id}/ips/net")).await["net"].as_array().unwrap().len(), 1);
    assert_eq!(api.get("2.1", &format!("/servers/{id}/os-security-groups")).await["security_groups"][0]["name"], "default");
    // Actions.
    let act = |body: Value| {
        let path = format!("/servers/{id}/action");
        let api = &api;
        async move { api.member("2.96", "POST", &path, Some(body)).await }
    };
    assert_eq!(act(json!({"os-stop": null})).await.status, 202);
    let off = api.until(&id, "SHUTOFF").await;
    assert_eq!(off["OS-EXT-STS:power_state"], 4);
    let refused = act(json!({"os-stop": null})).await;
    assert_eq!(refused.status, 409);
    assert_eq!(
        refused.body["conflictingRequest"]["message"],
        format!("Cannot 'stop' instance {id} while it is in vm_state stopped")
    );
    assert_eq!(act(json!({"os-start": null})).await.status, 202);
    api.until(&id, "ACTIVE").await;
    assert_eq!(act(json!({"reboot": {"type": "SOFT"}})).await.status, 202);
    api.until(&id, "ACTIVE").await;
    let log = act(json!({"os-getConsoleOutput": {"length": 1}})).await;
    assert_eq!(log.body["output"], "login: ");
    for (body, status) in [
        (json!({"reboot": {"type": "WARM"}}), 400),
        (json!({"reboot": {}}), 400),
        (json!({"dance": null}), 400),
        (json!({}), 400),
        (json!({"os-start": null, "os-stop": null}), 400),
        (json!({"addFloatingIp": {"address": "203.0.113.9"}}), 404),
        (json!({"createImage": {"name": "x"}}), 400),
        (json!({"os-resetState": {"state": "error"}}), 403),
        (json!({"os-getConsoleOutput": {"length": "x"}}), 400),
    ] {
        assert_eq!(act(body.clone()).await.status, status, "{body}");
    }
    let history = api.get("2.96", &format!("/servers/{id}/os-instance-actions")).await;
    let names: Vec<_> = history["instanceActions"].as_array().unwrap().iter().map(|a| a["action"].clone()).collect();
    assert_eq!(names, ["reboot", "start", "stop", "create"]);
    let request = history["instanceActions"][3]["request_id"].as_str().unwrap();
    let entry = api.get("2.96", &format!("/servers/{id}/os-instance-actions/{request}")).await;
    assert_eq!(entry["instanceAction"]["events"][0]["result"], "Success");
    // Another project's member does not see it; a reader sees, but does not touch.
    let stranger = api.test.token("sam", "other", "member").await;
    assert_eq!(api.ask(&stranger, "2.1", "GET", &format!("/servers/{id}"), None).await.status, 404);
    assert_eq!(api.ask(&stranger, "2.1", "DELETE", &format!("/servers/{id}"), None).await.status, 404);
    assert_eq!(api.ask(&api.reader, "2.1", "GET", &format!("/servers/{id}"), None).await.status, 200);
    assert_eq!(api.ask(&api.reader, "2.1", "DELETE", &format!("/servers/{id}"), None).await.status, 403);
    // The end.
    let mut events = api.test.cloud.store.subscribe();
    assert_eq!(api.member("2.1", "DELETE", &format!("/servers/{id}"), None).await.status, 204);
    let gone = loop {
        let reply = api.member("2.1", "GET", &format!("/servers/{id}"), None).await;
        if reply.status != 200 {
            break reply;
        }
        let _ = events.recv().await;
    };
    let message = format!("Instance {id} could not be found.");
    assert_eq!(gone.body, json!({"itemNotFound": {"code": 404, "message": message}}));
    let ports = Request::get(format!("/network/v2.0/ports?device_id={id}"))
        .header("x-auth-token", &api.member)
        .body(Body::empty())
        .unwrap();
    assert_eq!(api.send(ports).await.body["ports"], json!([]));
    let deleted = api.admin("2.1", "GET", "/servers/detail?deleted=True&all_tenants=1", None).await;
    assert_eq!(deleted.body["servers"][0]["status"], "DELETED");
}

#[tokio::test]
async fn lists_are_filtered_sorted_and_cut() {
    let api = Api::running().await;
    let image = api.image().await;
    let mut ids = Vec::new();
    for name in ["alpha", "beta", "gamma"] {
        let id = api.server(&image, name, json!({"tags": [name, "all"]})).await;
        api.until(&id, "ACTIVE").await;
        ids.push(id);
    }
    let names = |list: &Value| -> Vec<String> {
        list["servers"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect()
    };
    for (query, expected) in [
        ("", vec!["gamma", "beta", "alpha"]),
        ("?name=^al", vec!["alpha"]),
        ("?name=ET", vec!["beta"]),
        ("?status=ACTIVE", vec!["gamma", "beta", "alpha"]),
        ("?status=SHUTOFF", vec![]),
        ("?sort_key=display_name&sort_dir=asc", vec!["alpha", "beta", "gamma"]),
        ("?sort_key=display_name&sort_dir=asc&limit=2", vec!["alpha", "beta"]),
        ("?tags=all,beta", vec!["beta"]),
        ("?tags-any=alpha,beta", vec!["beta", "alpha"]),
        ("?not-tags-any=alpha,beta", vec!["gamma"]),
        ("?flavor=SCS-1L-1", vec!["gamma", "beta", "alpha"]),
        ("?flavor=other", vec![]),
        ("?changes-since=2001-01-01T00:00:00Z", vec!["gamma", "beta", "alpha"]),
        ("?changes-since=2199-01-01T00:00:00Z", vec![]),
        ("?locked=true", vec![]),
        ("?deleted=False", vec!["gamma", "beta", "alpha"]),
        ("?vm_state=active&task_state=spawning", vec![]),
    ] {
        assert_eq!(names(&api.get("2.96", &format!("/servers/detail{query}")).await), expected, "{query}");
    }
    let mut path = "/servers?limit=1".to_owned();
    let mut walked = Vec::new();
    loop {
        let page = api.get("2.1", &path).await;
        walked.extend(names(&page));
        let Some(next) = page["servers_links"][0]["href"].as_str() else { break };
        path = next.split_once("/compute/v2.1").unwrap().1.to_owned();
    }
    assert_eq!(walked, ["gamma", "beta", "alpha"]);
    for (version, query, status) in [
        ("2.1", "?status=NONSENSE", 200),
        ("2.38", "?status=NONSENSE", 400),
        ("2.1", "?bogus=1", 200),
        ("2.75", "?bogus=1", 400),
        ("2.1", "?limit=-1", 400),
        ("2.1", "?marker=nothing", 400),
        ("2.1", "?name=[", 400),
        ("2.1", "?changes-since=yesterday", 400),
        ("2.1", "?sort_key=bogus", 400),
        ("2.1", "?all_tenants=1", 403),
        ("2.1", "?all_tenants=False", 200),
        ("2.1", "?status=DELETED", 403),
    ] {
        let reply = api.member(version, "GET", &format!("/servers/detail{query}"), None).await;
        assert_eq!(reply.status, status, "{version} {query}");
    }
    assert_eq!(names(&api.admin("2.1", "GET", "/servers", None).await.body), Vec::<String>::new());
    assert_eq!(names(&api.admin("2.1", "GET", "/servers?all_tenants=1", None).await.body).len(), 3);
    let path = format!("/servers?tenant_id={}", api.project);
    assert_eq!(names(&api.admin("2.1", "GET", &path, None).await.body).len(), 3);
}

#[tokio::test]
async fn quotas_hold_and_are_told() {
    let api = Api::new().await;
    let image = api.image().await;
    let path = format!("/os-quota-sets/{}", api.project);
    let set = json!({"quota_set": {"instances": 2, "cores": "3"}});
    assert_eq!(api.member("2.1", "PUT", &path, Some(set.clone())).await.status, 403);
    let reply = api.admin("2.60", "PUT", &path, Some(set)).await;
    assert_eq!((reply.status.as_u16(), &reply.body["quota_set"]["instances"]), (200, &json!(2)));
    api.server(&image, "a", json!({})).await;
    api.server(&image, "b", json!({})).await;
    let body = json!({"server": {"name": "c", "imageRef": image, "flavorRef": "SCS-1L-1"}});
    let over = api.member("2.1", "POST", "/servers", Some(body)).await;
    assert_eq!(
        over.body,
        json!({"forbidden": {"code": 403,
            "message": "Quota exceeded for instances: Requested 1, but already used 2 of 2 instances"}})
    );
    let limits = api.get("2.1", "/limits").await;
    assert_eq!(limits["limits"]["absolute"]["totalInstancesUsed"], 2);
    assert_eq!(limits["limits"]["absolute"]["maxTotalInstances"], 2);
    assert!(limits["limits"]["absolute"].get("maxTotalFloatingIps").is_some());
    assert!(api.get("2.36", "/limits").await["limits"]["absolute"].get("maxTotalFloatingIps").is_none());
    let shown = api.get("2.57", &path).await;
    assert!(shown["quota_set"].get("injected_files").is_none() && shown["quota_set"].get("fixed_ips").is_none());
    assert_eq!(api.get("2.1", &format!("{path}/detail")).await["quota_set"]["cores"]["in_use"], 2);
    assert_eq!(api.get("2.1", &format!("{path}/defaults")).await["quota_set"]["instances"], 10);
    assert_eq!(api.member("2.1", "GET", "/os-quota-sets/other", None).await.status, 403);
    let low = json!({"quota_set": {"instances": 1}});
    assert_eq!(api.admin("2.1", "PUT", &path, Some(low)).await.status, 400);
    for bad in [json!({"quota_set": {"bogus": 1}}), json!({"quota_set": {"cores": -2}}), json!({"quota_set": 1})] {
        assert_eq!(api.admin("2.60", "PUT", &path, Some(bad.clone())).await.status, 400, "{bad}");
    }
    assert_eq!(api.admin("2.1", "DELETE", &path, None).await.status, 202);
    assert_eq!(api.get("2.1", &path).await["quota_set"]["instances"], 10);
}

#[tokio::test]
async fn groups_hosts_and_zones() {
    let api = Api::running().await;
    let image = api.image().await;
    let new = json!({"server_group": {"name": "g", "policy": "anti-affinity", "rules": {"max_server_per_host": 1}}});
    let made = api.member("2.64", "POST", "/os-server-groups", Some(new)).await;
    assert_eq!(made.status, 200, "{}", made.body);
    let group = made.body["server_group"]["id"].as_str().unwrap().to_owned();
    let old = json!({"server_group": {"name": "g", "policies": ["soft-affinity"]}});
    assert_eq!(api.member("2.14", "POST", "/os-server-groups", Some(old.clone())).await.status, 400);
    assert_eq!(api.member("2.15", "POST", "/os-server-groups", Some(old)).await.status, 200);
    let body = json!({"server": {"name": "in", "imageRef": image, "flavorRef": "SCS-1L-1", "networks": "none"},
        "os:scheduler_hints": {"group": group}});
    let made = api.member("2.96", "POST", "/servers", Some(body)).await;
    let id = made.body["server"]["id"].as_str().unwrap().to_owned();
    let server = api.until(&id, "ACTIVE").await;
    assert_eq!(server["server_groups"], json!([group]));
    let shown = api.get("2.96", &format!("/os-server-groups/{group}")).await;
    assert_eq!(shown["server_group"]["members"], json!([id]));
    let old = api.get("2.1", &format!("/os-server-groups/{group}")).await;
    assert_eq!(old["server_group"]["policies"], json!(["anti-affinity"]));
    assert!(old["server_group"].get("project_id").is_none());

    assert_eq!(api.member("2.1", "GET", "/os-hypervisors", None).await.status, 403);
    let nodes = api.admin("2.1", "GET", "/os-hypervisors/detail", None).await.body;
    assert_eq!((&nodes["hypervisors"][0]["vcpus"], &nodes["hypervisors"][0]["running_vms"]), (&json!(16), &json!(1)));
    let nodes = api.admin("2.88", "GET", "/os-hypervisors/detail?with_servers=true", None).await.body;
    assert!(nodes["hypervisors"][0].get("vcpus").is_none());
    assert_eq!(nodes["hypervisors"][0]["servers"][0]["uuid"], id);
    let node = nodes["hypervisors"][0]["id"].as_str().unwrap();
    assert_eq!(api.admin("2.88", "GET", &format!("/os-hypervisors/{node}"), None).await.status, 200);
    assert_eq!(api.admin("2.52", "GET", "/os-hypervisors/1", None).await.status, 200);
    assert_eq!(api.admin("2.87", "GET", "/os-hypervisors/statistics", None).await.body["hypervisor_statistics"]["count"], 1);
    assert_eq!(api.admin("2.88", "GET", "/os-hypervisors/statistics", None).await.status, 404);
    assert_eq!(api.admin("2.53", "GET", "/os-services?binary=nova-compute", None).await.body["services"][0]["state"], "up");
    let zones = api.get("2.1", "/os-availability-zone").await;
    assert_eq!(zones["availabilityZoneInfo"][0]["zoneName"], "nova");
    assert_eq!(api.member("2.1", "GET", "/os-availability-zone/detail", None).await.status, 403);
    let usage = api.get("2.1", &format!("/os-simple-tenant-usage/{}", api.project)).await;
    assert_eq!(usage["tenant_usage"]["server_usages"][0]["instance_id"], id);
    assert_eq!(api.member("2.1", "GET", "/os-simple-tenant-usage", None).await.status, 403);
}

#[tokio::test]
async fn what_a_server_cannot_be_made_of_is_a_400() {
    let api = Api::new().await;
    let image = api.image().await;
    let nothing = uuid::Uuid::new_v4();
    for (change, text) in [
        (json!({"flavorRef": "nothing"}), "Flavor nothing could not be found."),
        (json!({"imageRef": nothing}), "Can not find requested image"),
        (json!({"key_name": "nothing"}), "Invalid key_name provided."),
        (json!({"networks": [{"uuid": nothing}]}), "could not be found"),
        (json!({"networks": [{"port": nothing}]}), "could not be found"),
        (json!({"security_groups": [{"name": "nothing"}]}), "nothing"),
        (json!({"availability_zone": "mars"}), "The requested availability zone is not available"),
        (json!({"networks": "auto"}), "network"),
    ] {
        let mut server = json!({"name": "x", "imageRef": image, "flavorRef": "SCS-1L-1", "networks": "none"});
        for (key, value) in change.as_object().unwrap() {
            server[key] = value.clone();
        }
        let reply = api.member("2.96", "POST", "/servers", Some(json!({"server": server}))).await;
        assert_eq!(reply.status, 400, "{change}: {}", reply.body);
        let message = reply.body["badRequest"]["message"].as_str().unwrap();
        assert!(message.contains(text), "{change}: {message}");
    }
    let host = json!({"server": {"name": "x", "imageRef": image, "flavorRef": "SCS-1L-1", "networks": "none",
        "host": "node1"}});
    assert_eq!(api.member("2.74", "POST", "/servers", Some(host)).await.status, 403);
    assert!(api.get("2.1", "/servers").await["servers"].as_array().unwrap().is_empty());
}

const PATHS: &[&str] = &[
    "/flavors",
    "/flavors/SCS-1L-1/action",
    "/flavors/SCS-1L-1/os-extra_specs",
    "/flavors/SCS-1L-1/os-extra_specs/x",
    "/os-keypairs",
    "/servers",
    "/servers/detail",
    "/servers/ffffffff-ffff-ffff-ffff-ffffffffffff",
    "/servers/ffffffff-ffff-ffff-ffff-ffffffffffff/action",
    "/servers/ffffffff-ffff-ffff-ffff-ffffffffffff/metadata",
    "/servers/ffffffff-ffff-ffff-ffff-ffffffffffff/metadata/x",
    "/servers/ffffffff-ffff-ffff-ffff-ffffffffffff/tags",
    "/servers/-1",
    "/os-server-groups",
    "/os-hypervisors/detail",
    "/os-quota-sets/x",
    "/os-simple-tenant-usage/x",
    "/limits",
];

#[test]
fn no_body_and_no_query_is_a_500() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let api = runtime.block_on(Api::new());
    let key = prop_oneof![
        Just("server"), Just("flavor"), Just("keypair"), Just("metadata"), Just("meta"), Just("tags"), Just("reboot"),
        Just("quota_set"), Just("server_group"), Just("extra_specs"), Just("addTenantAccess"), Just("name"),
        Just("lock"), Just("os-getConsoleOutput"), Just("os:scheduler_hints"), Just("networks"), Just("x"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    let body = leaf.prop_recursive(3, 12, 3, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::vec((key.clone(), inner), 0..4)
                .prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Value>()),
        ]
    });
    let query = "[a-z_-]{1,12}=[a-zA-Z0-9%\\[\\]-]{0,8}";
    let case = (0..PATHS.len(), 0usize..4, 1u16..=96, body, query);
    let config = ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |((path, method, minor, body, query) in case)| {
        let method = ["GET", "POST", "PUT", "DELETE"][method];
        let path = format!("{}?{query}", PATHS[path]);
        let reply = runtime.block_on(api.admin(&format!("2.{minor}"), method, &path, Some(body)));
        prop_assert!(reply.status.as_u16() < 500, "{method} {path}: {} {}", reply.status, reply.body);
    });
}
