//! Neutron's API as clients see it: requests go through the whole edge, rules and store.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use cloud::testing::TestCloud;
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::AppState;

struct Api {
    test: TestCloud,
    router: axum::Router,
    token: String,
}

impl Api {
    async fn new(role: &str) -> Self {
        let test = cloud::testing::cloud().await;
        cloud::network::bootstrap(&test.cloud).await.unwrap();
        let router = crate::router(AppState::new(test.cloud.clone()));
        let token = test.token("someone", "theirs", role).await;
        Api { test, router, token }
    }

    async fn send(&self, method: &str, path: &str, body: Body) -> (StatusCode, Value) {
        self.send_if(method, path, body, None).await
    }

    async fn send_if(
        &self,
        method: &str,
        path: &str,
        body: Body,
        if_match: Option<&str>,
    ) -> (StatusCode, Value) {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/network{path}"))
            .header("x-auth-token", &self.token)
            .header("content-type", "application/json");
        if let Some(condition) = if_match {
            request = request.header("if-match", condition);
        }
        let request = request.body(body).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send("GET", path, Body::empty()).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let (status, body) = self.send("POST", path, body.to_string().into()).await;
        assert_eq!(status, 201, "{path}: {body}");
        body
    }

    async fn put(&self, path: &str, body: Value) -> Value {
        let (status, body) = self.send("PUT", path, body.to_string().into()).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    async fn delete(&self, path: &str) {
        let (status, body) = self.send("DELETE", path, Body::empty()).await;
        assert_eq!(status, 204, "{path}: {body}");
    }

    /// The status and the type of an error.
    async fn refused(&self, method: &str, path: &str, body: Value) -> (u16, String) {
        let (status, answer) = self.send(method, path, body.to_string().into()).await;
        let kind = answer["NeutronError"]["type"]
            .as_str()
            .unwrap_or_else(|| panic!("{path}: {status} {answer}"));
        (status.as_u16(), kind.to_owned())
    }

    async fn network(&self, name: &str) -> String {
        id(&self
            .post("/v2.0/networks", json!({"network": {"name": name}}))
            .await["network"])
    }

    async fn subnet(&self, network: &str, cidr: &str) -> String {
        let body = json!({"subnet": {"network_id": network, "cidr": cidr, "ip_version": 4}});
        id(&self.post("/v2.0/subnets", body).await["subnet"])
    }

    async fn external(&self) -> String {
        id(&self.get("/v2.0/networks?router:external=True").await["networks"][0])
    }
}

fn id(resource: &Value) -> String {
    resource["id"].as_str().unwrap().to_owned()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|item| item["name"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_there_is_advertised() {
    let api = Api::new("member").await;
    assert_eq!(api.get("").await["versions"][0]["id"], "v2.0");
    assert_eq!(api.get("/").await["versions"][0]["status"], "CURRENT");
    for path in ["/v2.0", "/v2.0/"] {
        assert!(api.get(path).await["resources"].as_array().unwrap().len() > 5);
    }
    let extensions = api.get("/v2.0/extensions").await;
    for extension in extensions["extensions"].as_array().unwrap() {
        let alias = extension["alias"].as_str().unwrap();
        let one = api.get(&format!("/v2.0/extensions/{alias}")).await;
        assert_eq!(&one["extension"], extension);
    }
    for missing in ["external-gateway-multihoming", "qos", "trunk"] {
        let refused = api
            .refused("GET", &format!("/v2.0/extensions/{missing}"), json!({}))
            .await;
        assert_eq!(refused, (404, "ExtensionNotFound".into()));
    }
    let resources = api.get("/v2.0/").await;
    for resource in resources["resources"].as_array().unwrap() {
        let href = resource["links"][0]["href"].as_str().unwrap();
        let path = &href[href.find("/v2.0").unwrap()..];
        let (status, _) = api.send("GET", path, Body::empty()).await;
        assert!([200, 403].contains(&status.as_u16()), "{path}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_has_every_attribute_and_tenants_see_no_segments() {
    let api = Api::new("member").await;
    let created = api
        .post(
            "/v2.0/networks",
            json!({"network": {"name": "n", "admin_state_up": true}}),
        )
        .await;
    let network = &created["network"];
    let mut keys: Vec<&str> = network.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "admin_state_up",
            "availability_zone_hints",
            "availability_zones",
            "created_at",
            "description",
            "dns_domain",
            "id",
            "ipv4_address_scope",
            "ipv6_address_scope",
            "is_default",
            "mtu",
            "name",
            "port_security_enabled",
            "project_id",
            "revision_number",
            "router:external",
            "shared",
            "status",
            "subnets",
            "tags",
            "tenant_id",
            "updated_at",
        ]
    );
    assert_eq!(
        (&network["status"], &network["mtu"]),
        (&json!("ACTIVE"), &json!(1442))
    );
    let path = format!("/v2.0/networks/{}", id(network));
    let again = api
        .put(&path, json!({"network": {"name": "n", "mtu": 1442}}))
        .await;
    assert_eq!(again, created);
    let renamed = api.put(&path, json!({"network": {"name": "m"}})).await;
    assert_eq!(renamed["network"]["revision_number"], 2);
    assert_eq!(
        api.get(&format!("{path}?fields=name&fields=id")).await["network"]
            .as_object()
            .unwrap()
            .len(),
        2
    );

    let admin = Api {
        token: api.test.admin_token().await,
        router: api.router.clone(),
        test: api.test,
    };
    assert_eq!(
        admin.get(&path).await["network"]["provider:network_type"],
        "geneve"
    );
    assert_eq!(
        admin.get("/v2.0/networks?name=ext-net").await["networks"][0]["provider:physical_network"],
        "allod0"
    );
    admin.delete(&path).await;
    assert_eq!(
        admin.refused("GET", &path, json!({})).await,
        (404, "NetworkNotFound".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_faults_of_neutrons_kind() {
    let api = Api::new("member").await;
    let network = api.network("n").await;
    let path = format!("/v2.0/networks/{network}");
    let cases = [
        ("GET", "/v2.0/networks/n", json!({}), 404, "NetworkNotFound"),
        ("GET", "/v2.0/routers/r", json!({}), 404, "RouterNotFound"),
        (
            "GET",
            "/v2.0/networks?color=red",
            json!({}),
            400,
            "HTTPBadRequest",
        ),
        ("POST", "/v2.0/networks", json!({}), 400, "HTTPBadRequest"),
        (
            "POST",
            "/v2.0/networks",
            json!({"networks": []}),
            400,
            "HTTPBadRequest",
        ),
        (
            "POST",
            "/v2.0/networks",
            json!({"network": []}),
            400,
            "HTTPBadRequest",
        ),
        (
            "POST",
            "/v2.0/networks",
            json!({"network": {"color": "red"}}),
            400,
            "HTTPBadRequest",
        ),
        (
            "POST",
            "/v2.0/networks",
            json!({"network": {"name": 7}}),
            400,
            "HTTPBadRequest",
        ),
        (
            "POST",
            "/v2.0/networks",
            json!({"network": {"name": "x".repeat(256)}}),
            400,
            "HTTPBadRequest",
        ),
        (
            "POST",
            "/v2.0/networks",
            json!({"network": {"admin_state_up": "maybe"}}),
            400,
            "HTTPBadRequest",
        ),
        (
            "POST",
            "/v2.0/networks",
            json!({"network": {"mtu": 9000}}),
            400,
            "InvalidInput",
        ),
        (
            "POST",
            "/v2.0/networks",
            json!({"network": {"shared": true}}),
            403,
            "PolicyNotAuthorized",
        ),
        (
            "POST",
            "/v2.0/networks",
            json!({"network": {"project_id": "other"}}),
            400,
            "HTTPBadRequest",
        ),
        (
            "PUT",
            path.as_str(),
            json!({"network": {"id": "x"}}),
            400,
            "HTTPBadRequest",
        ),
        (
            "PUT",
            path.as_str(),
            json!({"network": {"color": "red"}}),
            400,
            "HTTPBadRequest",
        ),
        (
            "POST",
            "/v2.0/subnets",
            json!({"subnet": {"network_id": network, "cidr": "x"}}),
            400,
            "InvalidInput",
        ),
        (
            "POST",
            "/v2.0/subnets",
            json!({"subnet": {"cidr": "10.0.0.0/24"}}),
            400,
            "HTTPBadRequest",
        ),
        (
            "POST",
            "/v2.0/ports",
            json!({"port": {"network_id": network, "mac_address": "x"}}),
            400,
            "HTTPBadRequest",
        ),
        (
            "POST",
            "/v2.0/ports",
            json!({"port": {"network_id": network, "fixed_ips": [7]}}),
            400,
            "HTTPBadRequest",
        ),
        (
            "POST",
            "/v2.0/floatingips",
            json!({"floatingip": {"floating_network_id": network}}),
            400,
            "BadRequest",
        ),
        ("GET", "/v2.0/trunks", json!({}), 404, "HTTPNotFound"),
        ("PATCH", "/v2.0/networks", json!({}), 405, "HTTPMethodNotAllowed"),
    ];
    for (method, path, body, status, kind) in cases {
        let found = api.refused(method, path, body.clone()).await;
        assert_eq!(found, (status, kind.to_owned()), "{method} {path} {body}");
    }
    let (status, _) = api.send("POST", "/v2.0/networks", "{\"network\": {".into()).await;
    assert_eq!(status, 400);
    let stranger = Api {
        token: "x".into(),
        router: api.router.clone(),
        test: api.test,
    };
    assert_eq!(stranger.send("GET", "/v2.0/networks", Body::empty()).await.0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_are_made_at_once_or_none() {
    let api = Api::new("member").await;
    let many = json!({"networks": [{"name": "a"}, {"name": "b"}, {"name": "c"}]});
    let made = api.post("/v2.0/networks", many).await;
    assert_eq!(names(&made["networks"]), ["a", "b", "c"]);
    let half = json!({"networks": [{"name": "d"}, {"name": "e", "mtu": 1}]});
    assert_eq!(api.refused("POST", "/v2.0/networks", half).await.0, 400);
    assert_eq!(api.get("/v2.0/networks?name=d").await["networks"], json!([]));

    let page = api
        .get("/v2.0/networks?sort_key=name&sort_dir=desc&limit=2")
        .await;
    assert_eq!(names(&page["networks"]), ["ext-net", "c"]);
    let next = page["networks_links"][0]["href"].as_str().unwrap();
    assert!(
        next.starts_with("http://127.0.0.1:8774/network/v2.0/networks?"),
        "{next}"
    );
    let rest = api.get(&next[next.find("/v2.0").unwrap()..]).await;
    assert_eq!(names(&rest["networks"]), ["b", "a"]);
    assert_eq!(rest["networks_links"][1]["rel"], "previous");
    // The page is full, so there may be more behind it; the next one is empty and the last.
    let next = rest["networks_links"][0]["href"].as_str().unwrap();
    let end = api.get(&next[next.find("/v2.0").unwrap()..]).await;
    assert_eq!(
        (&end["networks"], &end["networks_links"][0]["rel"]),
        (&json!([]), &json!("previous"))
    );
    assert_eq!(end["networks_links"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn security_groups_come_with_their_rules() {
    let api = Api::new("member").await;
    let groups = api.get("/v2.0/security-groups").await;
    assert_eq!(names(&groups["security_groups"]), ["default"]);
    assert_eq!(
        groups["security_groups"][0]["security_group_rules"]
            .as_array()
            .unwrap()
            .len(),
        4
    );
    let body = json!({"security_group": {"name": "web", "description": "d"}});
    let made = api.post("/v2.0/security-groups", body).await;
    let group = id(&made["security_group"]);
    assert_eq!(
        made["security_group"]["security_group_rules"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(made["security_group"]["stateful"], true);
    let rule = json!({"security_group_rule": {
        "security_group_id": group, "direction": "ingress", "ethertype": "ipv4", "protocol": "tcp",
        "port_range_min": "80", "port_range_max": 80, "remote_ip_prefix": "10.1.2.3/8", "remote_group_id": null,
    }});
    let made = api.post("/v2.0/security-group-rules", rule.clone()).await;
    let view = &made["security_group_rule"];
    assert_eq!(view["normalized_cidr"], "10.0.0.0/8");
    assert_eq!(
        (&view["remote_ip_prefix"], &view["port_range_min"]),
        (&json!("10.1.2.3/8"), &json!(80))
    );
    let refused = api.refused("POST", "/v2.0/security-group-rules", rule).await;
    assert_eq!(refused, (409, "SecurityGroupRuleExists".into()));
    let list = format!("/v2.0/security-group-rules?security_group_id={group}&direction=ingress");
    assert_eq!(
        api.get(&list).await["security_group_rules"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    api.delete(&format!("/v2.0/security-group-rules/{}", id(view)))
        .await;
    api.delete(&format!("/v2.0/security-groups/{group}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_network_to_a_floating_ip_and_back() {
    let api = Api::new("member").await;
    let (network, external) = (api.network("n").await, api.external().await);
    let subnet = api.subnet(&network, "10.0.0.0/24").await;
    let body = json!({"router": {"name": "r", "external_gateway_info": {"network_id": external}}});
    let router = api.post("/v2.0/routers", body).await;
    let gateway = &router["router"]["external_gateway_info"];
    assert_eq!(gateway["external_fixed_ips"][0]["ip_address"], "203.0.113.2");
    let router = format!("/v2.0/routers/{}", id(&router["router"]));
    let added = api
        .put(
            &format!("{router}/add_router_interface"),
            json!({"subnet_id": subnet}),
        )
        .await;
    assert_eq!(
        (&added["subnet_ids"], &added["network_id"]),
        (&json!([subnet]), &json!(network))
    );

    let body = json!({"port": {"network_id": network, "name": "p", "fixed_ips": [{"subnet_id": subnet}]}});
    let port = api.post("/v2.0/ports", body).await;
    assert_eq!(
        port["port"]["dns_assignment"][0]["fqdn"],
        "host-10-0-0-2.openstacklocal."
    );
    assert!(port["port"].get("binding:host_id").is_none());
    let port = id(&port["port"]);
    let body = json!({"floatingip": {"floating_network_id": external, "port_id": port}});
    let floating = api.post("/v2.0/floatingips", body).await;
    assert_eq!(floating["floatingip"]["fixed_ip_address"], "10.0.0.2");
    assert_eq!(floating["floatingip"]["port_details"]["name"], "p");
    let floating = format!("/v2.0/floatingips/{}", id(&floating["floatingip"]));
    let owned = api
        .get(&format!(
            "/v2.0/ports?device_owner=network:router_interface&network_id={network}"
        ))
        .await;
    assert_eq!(owned["ports"].as_array().unwrap().len(), 1);
    let by_address = api.get("/v2.0/ports?fixed_ips=ip_address%3D10.0.0.2").await;
    assert_eq!(names(&by_address["ports"]), ["p"]);

    let remove = json!({"subnet_id": subnet});
    let refused = api
        .refused(
            "PUT",
            &format!("{router}/remove_router_interface"),
            remove.clone(),
        )
        .await;
    assert_eq!(refused, (409, "RouterInterfaceInUseByFloatingIP".into()));
    assert_eq!(
        api.refused("DELETE", &router, json!({})).await,
        (409, "RouterInUse".into())
    );
    let detached = api.put(&floating, json!({"floatingip": {"port_id": null}})).await;
    assert_eq!(
        (
            &detached["floatingip"]["port_id"],
            &detached["floatingip"]["status"]
        ),
        (&Value::Null, &json!("DOWN"))
    );
    api.delete(&floating).await;
    api.put(&format!("{router}/remove_router_interface"), remove)
        .await;
    let cleared = api
        .put(&router, json!({"router": {"external_gateway_info": {}}}))
        .await;
    assert_eq!(cleared["router"]["external_gateway_info"], Value::Null);
    api.delete(&router).await;
    api.delete(&format!("/v2.0/ports/{port}")).await;
    api.delete(&format!("/v2.0/networks/{network}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_and_quotas_and_inventory() {
    let api = Api::new("member").await;
    let network = api.network("n").await;
    let tags = format!("/v2.0/networks/{network}/tags");
    assert_eq!(
        api.put(&tags, json!({"tags": ["b", "a"]})).await["tags"],
        json!(["a", "b"])
    );
    assert_eq!(api.send("PUT", &format!("{tags}/c"), Body::empty()).await.0, 201);
    assert_eq!(api.send("GET", &format!("{tags}/c"), Body::empty()).await.0, 204);
    assert_eq!(
        api.refused("GET", &format!("{tags}/d"), json!({})).await,
        (404, "TagNotFound".into())
    );
    assert_eq!(
        names(&api.get("/v2.0/networks?tags=a,c").await["networks"]),
        ["n"]
    );
    api.delete(&tags).await;
    assert_eq!(api.get(&tags).await["tags"], json!([]));
    assert_eq!(
        api.refused("GET", &format!("/v2.0/colors/{network}/tags"), json!({}))
            .await
            .0,
        404
    );

    let own = api.get("/v2.0/quotas/tenant").await["tenant"]["tenant_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let quotas = format!("/v2.0/quotas/{own}");
    assert_eq!(api.get(&quotas).await["quota"]["network"], 100);
    assert_eq!(
        api.get(&format!("{quotas}/details")).await["quota"]["network"]["used"],
        1
    );
    let set = json!({"quota": {"network": 1}});
    assert_eq!(api.refused("PUT", &quotas, set.clone()).await.0, 403);
    for hidden in ["agents", "network-ip-availabilities"] {
        let list = api.get(&format!("/v2.0/{hidden}")).await;
        assert_eq!(list[hidden.replace('-', "_")], json!([]));
    }
    let token = api.test.admin_token().await;
    let (member, admin) = (api.token.clone(), Api { token, ..api });
    assert_eq!(admin.put(&quotas, set).await["quota"]["network"], 1);
    assert_eq!(
        admin
            .refused("PUT", &quotas, json!({"quota": {"color": 1}}))
            .await
            .0,
        400
    );
    let agents = admin.get("/v2.0/agents").await;
    let agent = &agents["agents"][0];
    assert_eq!(agent["binary"], "allod-switch");
    assert_eq!(
        admin.get(&format!("/v2.0/agents/{}", id(agent))).await["agent"]["host"],
        "node1"
    );
    let availability = admin.get("/v2.0/network-ip-availabilities?ip_version=4").await;
    let external = availability["network_ip_availabilities"].as_array().unwrap();
    assert!(
        external
            .iter()
            .any(|n| n["network_name"] == "ext-net" && n["total_ips"] == 253)
    );
    assert_eq!(
        admin.get("/v2.0/service-providers").await["service_providers"],
        json!([])
    );
    assert_eq!(
        admin.get("/v2.0/availability_zones").await["availability_zones"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let api = Api {
        token: member,
        ..admin
    };
    let refused = api
        .refused("POST", "/v2.0/networks", json!({"network": {}}))
        .await;
    assert_eq!(refused, (409, "OverQuota".into()));
}

/// Everything that a list shows can be filtered and sorted by.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_can_be_asked_for() {
    let mut api = Api::new("admin").await;
    api.token = api.test.admin_token().await;
    let (network, external) = (api.network("n").await, api.external().await);
    let subnet = api.subnet(&network, "10.0.0.0/24").await;
    api.post("/v2.0/ports", json!({"port": {"network_id": network}}))
        .await;
    api.post("/v2.0/routers", json!({"router": {"name": "r"}})).await;
    api.post(
        "/v2.0/floatingips",
        json!({"floatingip": {"floating_network_id": external}}),
    )
    .await;
    assert!(!subnet.is_empty());
    let collections = [
        "networks",
        "subnets",
        "ports",
        "routers",
        "floatingips",
        "security-groups",
        "security-group-rules",
        "agents",
    ];
    for collection in collections {
        let list = api.get(&format!("/v2.0/{collection}")).await;
        let items = list[collection.replace('-', "_")].as_array().unwrap().clone();
        for key in items[0].as_object().unwrap().keys() {
            let (status, body) = api
                .send(
                    "GET",
                    &format!("/v2.0/{collection}?{key}=x&sort_key={key}"),
                    Body::empty(),
                )
                .await;
            assert_eq!(status, 200, "{collection} {key}: {body}");
        }
        for item in &items {
            for (key, value) in item
                .as_object()
                .unwrap()
                .iter()
                .filter(|(_, value)| value.is_string())
            {
                let value = value.as_str().unwrap();
                let query: String = form_urlencoded::byte_serialize(value.as_bytes()).collect();
                let found = api.get(&format!("/v2.0/{collection}?{key}={query}")).await;
                let found = found[collection.replace('-', "_")].as_array().unwrap().clone();
                assert!(found.contains(item), "{collection} {key}={value}");
            }
        }
    }
}

fn odd() -> impl Strategy<Value = Value> {
    let texts = prop_oneof![
        Just("10.0.0.0/24"),
        Just("10.0.0.5"),
        Just("fd00::/64"),
        Just("::/0"),
        Just("255.255.255.255/32"),
        Just("169.254.169.254"),
        Just("slaac"),
        Just("icmp"),
        Just("tcp"),
        Just("58"),
        Just("ingress"),
        Just("IPv6"),
        Just("fa:16:3e:00:00:01"),
        Just("ff:ff:ff:ff:ff:ff"),
        Just("NETWORK"),
        Just(""),
        Just("\u{0}\u{fffd}é"),
    ];
    let leaf = prop_oneof![
        3 => texts.prop_map(|text| json!(text)),
        1 => any::<i64>().prop_map(|n| json!(n)),
        1 => (0..300i64).prop_map(|n| json!(n)),
        1 => any::<bool>().prop_map(|b| json!(b)),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        let keys = prop_oneof![
            Just("network_id"),
            Just("subnet_id"),
            Just("ip_address"),
            Just("start"),
            Just("end"),
            Just("destination"),
            Just("nexthop"),
            Just("opt_name"),
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            proptest::collection::vec((keys, inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

/// Whatever is in the attributes that an operation takes: an answer or a 4xx, never our own fault.
#[test]
fn odd_bodies_never_are_our_fault() {
    use super::resource::Kind;
    type Case = (&'static str, &'static str, &'static [&'static str]);
    let kinds: [Case; 6] = [
        ("networks", "network", super::networks::Networks::POST),
        ("subnets", "subnet", super::subnets::Subnets::POST),
        ("ports", "port", super::ports::Ports::POST),
        ("routers", "router", super::routers::Routers::POST),
        (
            "floatingips",
            "floatingip",
            super::floating_ips::FloatingIps::POST,
        ),
        (
            "security-group-rules",
            "security_group_rule",
            super::security_rules::SecurityRules::POST,
        ),
    ];
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (api, network) = runtime.block_on(async {
        let mut api = Api::new("admin").await;
        api.token = api.test.admin_token().await;
        let network = api.network("n").await;
        (api, network)
    });
    let bodies = (
        0..kinds.len(),
        proptest::collection::vec((any::<prop::sample::Index>(), odd()), 0..6),
    );
    proptest!(ProptestConfig { cases: 256, ..ProptestConfig::default() }, |((kind, attributes) in bodies)| {
        let (path, one, names) = kinds[kind];
        let mut object: serde_json::Map<String, Value> =
            attributes.into_iter().map(|(name, value)| ((*name.get(names)).to_owned(), value)).collect();
        if names.contains(&"network_id") && !object.contains_key("network_id") {
            object.insert("network_id".into(), json!(network));
        }
        let text = json!({one: object}).to_string().replace("NETWORK", &network);
        let (status, answer) = runtime.block_on(api.send("POST", &format!("/v2.0/{path}"), text.clone().into()));
        prop_assert!(status == 201 || status.is_client_error(), "{} {}: {} {}", path, text, status, answer);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_and_default_rules_on_the_wire() {
    let api = Api::new("admin").await;
    let scope = json!({"address_scope": {"name": "s", "ip_version": 4}});
    let scope = id(&api.post("/v2.0/address-scopes", scope).await["address_scope"]);
    let body = json!({"subnetpool": {"name": "p", "prefixes": ["10.1.0.0/16"], "default_prefixlen": 24,
        "address_scope_id": scope}});
    let pool = api.post("/v2.0/subnetpools", body).await["subnetpool"].clone();
    assert_eq!(pool["ip_version"], 4);
    let path = format!("/v2.0/subnetpools/{}", id(&pool));
    let network = api.network("n").await;
    let body = json!({"subnet": {"network_id": network, "ip_version": 4, "subnetpool_id": id(&pool)}});
    let subnet = api.post("/v2.0/subnets", body).await["subnet"].clone();
    assert_eq!(
        (&subnet["cidr"], &subnet["subnetpool_id"]),
        (&json!("10.1.0.0/24"), &pool["id"])
    );
    let network = &api.get(&format!("/v2.0/networks/{network}")).await["network"];
    assert_eq!(network["ipv4_address_scope"], scope.as_str());
    let body = json!({"prefixes": ["10.4.0.0/16"]});
    let more = api.put(&format!("{path}/add_prefixes"), body.clone()).await;
    assert_eq!(more, json!({"prefixes": ["10.1.0.0/16", "10.4.0.0/16"]}));
    let less = api.put(&format!("{path}/remove_prefixes"), body).await;
    assert_eq!(less, json!({"prefixes": ["10.1.0.0/16"]}));
    api.put(&format!("{path}/tags"), json!({"tags": ["red"]})).await;
    assert_eq!(
        names(&api.get("/v2.0/subnetpools?tags=red").await["subnetpools"]),
        ["p"]
    );
    assert_eq!(
        api.refused("DELETE", &path, json!({})).await.1,
        "SubnetPoolDeleteError"
    );

    let rules = "/v2.0/default-security-group-rules";
    let all = api.get(rules).await["default_security_group_rules"].clone();
    assert_eq!(all.as_array().unwrap().len(), 4);
    for rule in all.as_array().unwrap() {
        let expected = if rule["direction"] == "ingress" {
            json!("PARENT")
        } else {
            Value::Null
        };
        assert_eq!(rule["remote_group_id"], expected);
    }
    let body = json!({"default_security_group_rule": {"direction": "ingress", "ethertype": "IPv6",
        "remote_group_id": "PARENT", "used_in_non_default_sg": true}});
    let rule = api.post(rules, body).await["default_security_group_rule"].clone();
    let body = json!({"security_group": {"name": "g"}});
    let group = api.post("/v2.0/security-groups", body).await["security_group"].clone();
    let own = group["security_group_rules"].as_array().unwrap();
    assert!(own.iter().any(|rule| rule["remote_group_id"] == group["id"]));
    let one = format!("{rules}/{}", id(&rule));
    assert_eq!(api.send("PUT", &one, "{}".into()).await.0, 405);
    api.delete(&one).await;
    assert_eq!(api.refused("GET", &one, json!({})).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_may_depend_on_the_revision() {
    let api = Api::new("member").await;
    let path = format!("/v2.0/networks/{}", api.network("n").await);
    let revision = api.get(&path).await["network"]["revision_number"]
        .as_i64()
        .unwrap();
    let change = |number: String| {
        let (api, path) = (&api, path.clone());
        async move {
            let body = json!({"network": {"name": "m"}}).to_string();
            api.send_if("PUT", &path, body.into(), Some(&number)).await
        }
    };
    let (status, body) = change(format!("revision_number={}", revision + 1)).await;
    assert_eq!(status, 412);
    assert_eq!(body["NeutronError"]["type"], "RevisionNumberConstraintFailed");
    assert_eq!(change("soon".into()).await.0, 400);
    assert_eq!(change(format!("revision_number={revision}")).await.0, 200);
    let stale = format!("revision_number={revision}");
    assert_eq!(
        api.send_if("DELETE", &path, Body::empty(), Some(&stale)).await.0,
        412
    );
    api.delete(&path).await;
}
