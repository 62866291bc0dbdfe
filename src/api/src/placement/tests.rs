//! The API over a test cloud, request by request.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use cloud::testing::{self, TestCloud};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::AppState;

struct Api {
    test: TestCloud,
    router: Router,
    admin: String,
}

impl Api {
    async fn new() -> Api {
        let test = testing::cloud().await;
        let router = crate::router(AppState::new(test.cloud.clone()));
        let admin = test.admin_token().await;
        Api { test, router, admin }
    }

    async fn ask(
        &self,
        token: &str,
        version: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let request = Request::builder()
            .method(method)
            .uri(format!("/placement{path}"))
            .header("content-type", "application/json")
            .header("x-auth-token", token)
            .header("openstack-api-version", format!("placement {version}"));
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let response = self
            .router
            .clone()
            .oneshot(request.body(body).unwrap())
            .await
            .unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn admin(
        &self,
        version: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        self.ask(&self.admin, version, method, path, body).await
    }

    async fn get(&self, version: &str, path: &str) -> Value {
        let (status, body) = self.admin(version, "GET", path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// A provider of the test's own, with this much memory.
    async fn provider(&self, name: &str, memory: u64) -> String {
        let (status, body) = self
            .admin("1.39", "POST", "/resource_providers", Some(json!({"name": name})))
            .await;
        assert_eq!(status, 200, "{body}");
        let id = body["uuid"].as_str().unwrap().to_owned();
        let inventories = json!({
            "resource_provider_generation": body["generation"],
            "inventories": {"MEMORY_MB": {"total": memory}},
        });
        let path = format!("/resource_providers/{id}/inventories");
        let (status, body) = self.admin("1.39", "PUT", &path, Some(inventories)).await;
        assert_eq!(status, 200, "{body}");
        id
    }
}

const CONSUMER: &str = "10000000-0000-0000-0000-000000000001";

fn allocations(provider: &str, memory: u64, generation: Value) -> Value {
    json!({
        "allocations": {provider: {"resources": {"MEMORY_MB": memory}}},
        "project_id": "p",
        "user_id": "u",
        "consumer_generation": generation,
        "consumer_type": "INSTANCE",
    })
}

#[tokio::test]
async fn the_version_document_is_everyones_and_all_else_is_operators() {
    let api = Api::new().await;
    let (status, body) = api.ask("", "1.0", "GET", "/", None).await;
    assert_eq!(
        (status.as_u16(), &body["versions"][0]["max_version"]),
        (200, &json!("1.39"))
    );
    let member = api.test.token("mia", "shop", "member").await;
    for path in [
        "/resource_providers",
        "/traits",
        "/resource_classes",
        "/usages?project_id=p",
        "/allocation_candidates?resources=VCPU:1",
    ] {
        let (status, body) = api.ask(&member, "1.39", "GET", path, None).await;
        assert_eq!(status, 403, "{path}: {body}");
        assert_eq!(body["errors"][0]["status"], 403);
        assert_eq!(api.ask("", "1.39", "GET", path, None).await.0, 401, "{path}");
        assert_eq!(api.admin("1.39", "GET", path, None).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn this_node_is_a_provider_whose_ratios_operators_set() {
    let api = Api::new().await;
    let register = || async {
        cloud::compute::register(&api.test.cloud).await.unwrap();
    };
    register().await;
    let all = api.get("1.39", "/resource_providers?name=node1").await;
    let id = all["resource_providers"][0]["uuid"].as_str().unwrap().to_owned();
    let path = format!("/resource_providers/{id}/inventories");
    let before = api.get("1.39", &path).await;
    assert_eq!(before["inventories"]["VCPU"]["total"], 16);
    assert_eq!(before["inventories"]["VCPU"]["allocation_ratio"], 16.0);
    let mut new = before["inventories"]["VCPU"].clone();
    new["allocation_ratio"] = json!(2.0);
    new["resource_provider_generation"] = before["resource_provider_generation"].clone();
    let (status, body) = api.admin("1.39", "PUT", &format!("{path}/VCPU"), Some(new)).await;
    assert_eq!(status, 200, "{body}");
    register().await;
    let after = api.get("1.39", &path).await;
    assert_eq!(after["inventories"]["VCPU"]["allocation_ratio"], 2.0);
}

#[tokio::test]
async fn nobody_gets_more_than_there_is() {
    let api = Api::new().await;
    let id = api.provider("host", 1024).await;
    let path = format!("/allocations/{CONSUMER}");
    let put =
        |memory, generation| api.admin("1.39", "PUT", &path, Some(allocations(&id, memory, generation)));
    assert_eq!(put(2048, Value::Null).await.0, 409);
    assert_eq!(put(1024, Value::Null).await.0, 204);
    let (status, body) = put(512, Value::Null).await;
    assert_eq!(
        (status.as_u16(), body["errors"][0]["code"].as_str()),
        (409, Some("placement.concurrent_update"))
    );
    let shown = api.get("1.39", &path).await;
    assert_eq!(shown["allocations"][&id]["resources"]["MEMORY_MB"], 1024);
    assert_eq!(put(512, shown["consumer_generation"].clone()).await.0, 204);
    let usages = api.get("1.39", &format!("/resource_providers/{id}/usages")).await;
    assert_eq!(usages["usages"]["MEMORY_MB"], 512);
    let usages = api.get("1.38", "/usages?project_id=p").await;
    assert_eq!(
        usages["usages"]["INSTANCE"],
        json!({"consumer_count": 1, "MEMORY_MB": 512})
    );
    assert_eq!(
        api.get("1.9", "/usages?project_id=p").await["usages"]["MEMORY_MB"],
        512
    );

    let delete = format!("/resource_providers/{id}");
    let (status, body) = api.admin("1.39", "DELETE", &delete, None).await;
    assert_eq!(
        (status.as_u16(), body["errors"][0]["code"].as_str()),
        (409, Some("placement.resource_provider.inuse"))
    );
    assert_eq!(api.admin("1.39", "DELETE", &path, None).await.0, 204);
    assert_eq!(api.admin("1.39", "DELETE", &path, None).await.0, 404);
    assert_eq!(api.admin("1.39", "DELETE", &delete, None).await.0, 204);
}

#[tokio::test]
async fn candidates_are_those_that_have_room_and_are_as_asked() {
    let api = Api::new().await;
    let (small, large) = (
        api.provider("small", 100).await,
        api.provider("large", 1000).await,
    );
    let count = async |version: &str, query: &str| {
        let body = api.get(version, &format!("/allocation_candidates?{query}")).await;
        body["allocation_requests"].as_array().unwrap().len()
    };
    assert_eq!(count("1.39", "resources=MEMORY_MB:50").await, 2);
    assert_eq!(count("1.39", "resources=MEMORY_MB:500").await, 1);
    assert_eq!(count("1.39", "resources=MEMORY_MB:5000").await, 0);
    assert_eq!(count("1.39", "resources=MEMORY_MB:50&limit=1").await, 1);
    assert_eq!(
        count(
            "1.39",
            "resources1=MEMORY_MB:60&resources2=MEMORY_MB:60&group_policy=none"
        )
        .await,
        1
    );
    let path = format!("/resource_providers/{large}");
    let (status, _) = api.admin("1.39", "PUT", "/traits/CUSTOM_FAST", None).await;
    assert_eq!(status, 201);
    let generation = api.get("1.39", &path).await["generation"].clone();
    let traits = json!({"traits": ["CUSTOM_FAST"], "resource_provider_generation": generation});
    assert_eq!(
        api.admin("1.39", "PUT", &format!("{path}/traits"), Some(traits))
            .await
            .0,
        200
    );
    assert_eq!(
        count("1.39", "resources=MEMORY_MB:50&required=CUSTOM_FAST").await,
        1
    );
    assert_eq!(
        count("1.39", "resources=MEMORY_MB:50&required=!CUSTOM_FAST").await,
        1
    );
    let body = api
        .get(
            "1.39",
            "/allocation_candidates?resources=MEMORY_MB:50&required=!CUSTOM_FAST",
        )
        .await;
    assert_eq!(
        body["provider_summaries"][&small]["resources"]["MEMORY_MB"]["capacity"],
        100
    );
    assert_eq!(
        api.admin("1.39", "DELETE", "/traits/CUSTOM_FAST", None).await.0,
        409
    );
    for (version, query, status) in [
        ("1.9", "resources=VCPU:1", 404),
        ("1.10", "resources=VCPU:1&limit=1", 400),
        ("1.16", "resources=VCPU:1&required=HW_CPU_X86_AVX", 400),
        ("1.21", "resources=VCPU:1&required=!HW_CPU_X86_AVX", 400),
        ("1.24", "resources1=VCPU:1", 400),
        ("1.32", "resources_A=VCPU:1", 400),
        ("1.33", "resources_A=VCPU:1", 200),
        ("1.39", "resources=NOTHING:1", 400),
        ("1.39", "limit=1", 400),
    ] {
        let path = format!("/allocation_candidates?{query}");
        let (got, body) = api.admin(version, "GET", &path, None).await;
        assert_eq!(got.as_u16(), status, "{version} {query}: {body}");
    }
}

#[tokio::test]
async fn a_change_of_what_another_has_changed_meanwhile_is_refused() {
    let api = Api::new().await;
    let id = api.provider("host", 10).await;
    let path = format!("/resource_providers/{id}/inventories");
    let body = json!({"resource_provider_generation": 0, "inventories": {}});
    let (status, body) = api.admin("1.39", "PUT", &path, Some(body)).await;
    assert_eq!(
        (status.as_u16(), body["errors"][0]["code"].as_str()),
        (409, Some("placement.concurrent_update"))
    );
}

#[tokio::test]
async fn inventories_and_allocations_change_together_or_not_at_all() {
    let api = Api::new().await;
    let (old, new) = (api.provider("old", 1000).await, api.provider("new", 1).await);
    let put = allocations(&old, 600, Value::Null);
    assert_eq!(
        api.admin("1.39", "PUT", &format!("/allocations/{CONSUMER}"), Some(put))
            .await
            .0,
        204
    );
    let shape = async |room: u64| {
        let generation = |id: String| {
            let api = &api;
            async move { api.get("1.39", &format!("/resource_providers/{id}")).await["generation"].clone() }
        };
        let seen = api.get("1.39", &format!("/allocations/{CONSUMER}")).await["consumer_generation"].clone();
        let body = json!({
            "inventories": {
                &old: {"resource_provider_generation": generation(old.clone()).await, "inventories": {}},
                &new: {
                    "resource_provider_generation": generation(new.clone()).await,
                    "inventories": {"MEMORY_MB": {"total": room}},
                },
            },
            "allocations": {CONSUMER: allocations(&new, 600, seen)},
        });
        api.admin("1.39", "POST", "/reshaper", Some(body))
            .await
            .0
            .as_u16()
    };
    assert_eq!(shape(100).await, 409);
    let shown = api.get("1.39", &format!("/allocations/{CONSUMER}")).await;
    assert_eq!(shown["allocations"][&old]["resources"]["MEMORY_MB"], 600);
    assert_eq!(shape(1000).await, 204);
    let shown = api.get("1.39", &format!("/allocations/{CONSUMER}")).await;
    assert_eq!(shown["allocations"][&new]["resources"]["MEMORY_MB"], 600);
}

#[tokio::test]
async fn hostile_bodies_are_a_clients_fault() {
    let api = Api::new().await;
    let id = api.provider("host", 10).await;
    let (inventories, allocation) = (
        format!("/resource_providers/{id}/inventories"),
        format!("/allocations/{CONSUMER}"),
    );
    for (method, path) in [
        ("POST", "/resource_providers"),
        ("PUT", inventories.as_str()),
        ("POST", inventories.as_str()),
        ("PUT", allocation.as_str()),
        ("POST", "/allocations"),
        ("POST", "/reshaper"),
        ("POST", "/resource_classes"),
    ] {
        for body in [
            json!(null),
            json!([]),
            json!({"name": 1}),
            json!({"allocations": {"x": 1}}),
            json!({"resource_provider_generation": -1, "inventories": {"VCPU": {"total": 1e300}}}),
            json!({"inventories": [], "allocations": 7}),
            json!({"x": {"allocations": {}}}),
        ] {
            let (status, answer) = api.admin("1.39", method, path, Some(body.clone())).await;
            assert!(
                status.is_client_error(),
                "{method} {path} {body}: {status} {answer}"
            );
        }
    }
}
