//! The API over a test cloud, request by request.

mod changes;
mod limits;
mod servers;
mod sizes;

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
        Api {
            test,
            router,
            admin,
            member,
            reader,
            project,
        }
    }

    /// With the loops of network and compute.
    async fn running() -> Api {
        let api = Api::new().await;
        cloud::network::spawn(api.test.cloud.clone());
        // The drivers' switch says nothing of its ports.
        let settings = cloud::compute::Settings {
            wait_for_ports: std::time::Duration::ZERO,
            ..Default::default()
        };
        cloud::compute::spawn_with(api.test.cloud.clone(), settings);
        cloud::volume::spawn(api.test.cloud.clone());
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
        Reply {
            status: parts.status,
            headers: parts.headers,
            body,
        }
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
        let made = self
            .send(request(
                "POST",
                "/images",
                "application/json",
                body.to_string().into(),
            ))
            .await;
        let id = made.body["id"].as_str().unwrap().to_owned();
        let file = request(
            "PUT",
            &format!("/images/{id}/file"),
            "application/octet-stream",
            vec![0; 1 << 20].into(),
        );
        assert!(self.send(file).await.status.is_success());
        let mut events = self.test.cloud.store.subscribe();
        loop {
            let shown = self
                .send(request("GET", &format!("/images/{id}"), "", Body::empty()))
                .await;
            match shown.body["status"].as_str() {
                Some("active") => return id,
                Some("killed") => panic!("{}", shown.body),
                _ => drop(events.recv().await),
            }
        }
    }

    /// A network with a subnet.
    async fn network(&self) -> String {
        let post = async |path: &str, body: Value| {
            let request = Request::post(format!("/network/v2.0/{path}"))
                .header("x-auth-token", &self.member)
                .header("content-type", "application/json")
                .body(Body::from(body.to_string()))
                .unwrap();
            let reply = self.send(request).await;
            assert_eq!(reply.status, 201, "{}", reply.body);
            reply.body
        };
        let made = post("networks", json!({"network": {"name": "net"}})).await;
        let id = made["network"]["id"].as_str().unwrap().to_owned();
        let subnet = json!({"network_id": id, "cidr": "10.1.0.0/24", "ip_version": 4});
        post("subnets", json!({"subnet": subnet})).await;
        id
    }

    async fn server(&self, image: &str, name: &str, more: Value) -> String {
        let mut server =
            json!({"name": name, "imageRef": image, "flavorRef": "SCS-1L-1", "networks": "none"});
        for (key, value) in more.as_object().unwrap() {
            server[key] = value.clone();
        }
        let made = self
            .member("2.96", "POST", "/servers", Some(json!({"server": server})))
            .await;
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
        tokio::time::timeout(std::time::Duration::from_secs(20), wait)
            .await
            .expect(status)
    }
}

#[tokio::test]
async fn versions_are_negotiated_and_told() {
    let api = Api::new().await;
    let one = api.ask("", "", "GET", "", None).await;
    assert_eq!(one.body["version"]["version"], "2.96");
    assert_eq!(one.body["version"]["min_version"], "2.1");
    assert!(
        one.body["version"]["links"][0]["href"]
            .as_str()
            .unwrap()
            .ends_with("/compute/v2.1/")
    );
    let root = Request::get("/compute/").body(Body::empty()).unwrap();
    assert_eq!(api.send(root).await.body["versions"][1]["id"], "v2.1");
    // 2.0 knows of no microversions.
    let old = Request::get("/compute/v2/flavors/detail")
        .header("x-auth-token", &api.member)
        .header("openstack-api-version", "compute 2.96")
        .body(Body::empty())
        .unwrap();
    let old = api.send(old).await;
    assert_eq!(old.status, 200);
    assert!(
        old.body["flavors"][0].get("extra_specs").is_none()
            && old.headers.get("openstack-api-version").is_none()
    );

    let reply = api.member("2.53", "GET", "/flavors", None).await;
    assert_eq!(reply.headers["openstack-api-version"], "compute 2.53");
    assert_eq!(reply.headers["x-openstack-nova-api-version"], "2.53");
    assert!(
        reply.headers["vary"]
            .to_str()
            .unwrap()
            .contains("OpenStack-API-Version")
    );
    assert!(
        reply.headers["x-compute-request-id"]
            .to_str()
            .unwrap()
            .starts_with("req-")
    );
    assert_eq!(
        api.member("", "GET", "/flavors", None).await.headers["openstack-api-version"],
        "compute 2.1"
    );
    assert_eq!(
        api.member("latest", "GET", "/flavors", None).await.headers["openstack-api-version"],
        "compute 2.96"
    );
    let reply = api.member("2.97", "GET", "/flavors", None).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body["computeFault"]["code"]),
        (406, &json!(406))
    );
    assert_eq!(api.member("2.x", "GET", "/flavors", None).await.status, 400);
    assert_eq!(api.ask("", "2.1", "GET", "/servers", None).await.status, 401);
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
    "/servers/ffffffff-ffff-ffff-ffff-ffffffffffff/os-interface",
    "/servers/ffffffff-ffff-ffff-ffff-ffffffffffff/os-volume_attachments",
    "/servers/ffffffff-ffff-ffff-ffff-ffffffffffff/os-volume_attachments/x",
    "/servers/ffffffff-ffff-ffff-ffff-ffffffffffff/remote-consoles",
    "/os-aggregates",
    "/os-aggregates/1/action",
    "/os-migrations",
    "/os-quota-class-sets/default",
    "/os-security-groups",
    "/os-security-group-rules",
    "/os-server-external-events",
    "/images/detail",
    "/images/x/metadata",
    "/os-server-groups",
    "/os-hypervisors/detail",
    "/os-quota-sets/x",
    "/os-simple-tenant-usage/x",
    "/limits",
];

#[test]
fn no_body_and_no_query_is_a_500() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let api = runtime.block_on(Api::new());
    let key = prop_oneof![
        Just("server"),
        Just("flavor"),
        Just("keypair"),
        Just("metadata"),
        Just("meta"),
        Just("tags"),
        Just("reboot"),
        Just("resize"),
        Just("rebuild"),
        Just("createImage"),
        Just("rescue"),
        Just("block_device_mapping_v2"),
        Just("interfaceAttachment"),
        Just("volumeAttachment"),
        Just("security_group_rule"),
        Just("aggregate"),
        Just("events"),
        Just("quota_set"),
        Just("server_group"),
        Just("extra_specs"),
        Just("addTenantAccess"),
        Just("name"),
        Just("lock"),
        Just("os-getConsoleOutput"),
        Just("os:scheduler_hints"),
        Just("networks"),
        Just("x"),
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
            proptest::collection::vec((key.clone(), inner), 0..4).prop_map(|pairs| pairs
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect::<Value>()),
        ]
    });
    let query = "[a-z_-]{1,12}=[a-zA-Z0-9%\\[\\]-]{0,8}";
    let case = (0..PATHS.len(), 0usize..4, 1u16..=96, body, query);
    let config = ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |((path, method, minor, body, query) in case)| {
        let method = ["GET", "POST", "PUT", "DELETE"][method];
        let path = format!("{}?{query}", PATHS[path]);
        let reply = runtime.block_on(api.admin(&format!("2.{minor}"), method, &path, Some(body)));
        prop_assert!(reply.status.as_u16() < 500, "{method} {path}: {} {}", reply.status, reply.body);
    });
}
