//! Glance's imports, tasks, the store and metadata definitions, over HTTP.

use std::time::Duration;

use cloud::testing::WebPage;

use super::*;

const URI: &str = "https://mirror.example/disk.raw";

async fn member(test: &TestCloud) -> Client {
    Client {
        token: Some(test.token("ann", "one", "member").await),
        ..Client::nobody(test)
    }
}

#[tokio::test]
async fn an_image_is_fetched_and_its_task_tells_of_it() {
    let test = cloud().await;
    let (admin, ann) = (Client::admin(&test).await, member(&test).await);
    let methods = ann.get("/image/v2/info/import").await.json();
    assert_eq!(
        methods["import-methods"]["value"],
        json!(["glance-direct", "web-download"])
    );
    let image = json!({"name": "i", "disk_format": "raw", "container_format": "bare"});
    let id = ann.json(Method::POST, "/image/v2/images", &image).await.json()["id"].clone();
    let at = format!("/image/v2/images/{}", id.as_str().unwrap());
    let import = format!("{at}/import");
    for (body, status) in [
        (json!({}), 400),
        (json!({"method": {"name": "web-download"}}), 400),
        (
            json!({"method": {"name": "web-download", "uri": "ftp://a/"}}),
            400,
        ),
        (json!({"method": {"name": "web-download", "uri": 7}}), 400),
        (json!({"method": {"name": "copy-image"}}), 400),
        (json!({"method": {"name": "glance-direct"}}), 409),
        (
            json!({"method": {"name": "web-download", "uri": URI}, "stores": ["else"]}),
            409,
        ),
    ] {
        assert_eq!(
            ann.json(Method::POST, &import, &body).await.status,
            status,
            "{body}"
        );
    }
    // It cannot be reached; then it can.
    let body = json!({"method": {"name": "web-download", "uri": URI}, "all_stores": true});
    for (status, image_status) in [("failure", "queued"), ("success", "active")] {
        let accepted = ann.json(Method::POST, &import, &body).await;
        assert_eq!(accepted.status, 202);
        let task = loop {
            let tasks = ann.get(&format!("{at}/tasks")).await.json();
            let request = accepted.headers["x-openstack-request-id"].to_str().unwrap();
            let task = tasks["tasks"]
                .as_array()
                .unwrap()
                .iter()
                .find(|task| task["request_id"] == request)
                .cloned();
            if let Some(task) = task.filter(|task| task["status"] != "processing") {
                break task;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(task["status"], status);
        assert_eq!(task["message"] == "", status == "success");
        assert_eq!(
            task["input"]["import_req"]["method"],
            json!({"name": "web-download", "uri": URI})
        );
        let image = ann.get(&at).await.json();
        assert_eq!(image["status"], image_status);
        assert_eq!(image["stores"] == "local", status == "success");
        let page = WebPage::whole(b"bytes of a disk");
        test.drivers.state().web.insert(URI.into(), page);
    }
    let bytes = ann.get(&format!("{at}/file")).await;
    assert_eq!(bytes.bytes, b"bytes of a disk");
    // Tasks by themselves are the administrators'.
    assert_eq!(ann.get("/image/v2/tasks").await.status, 403);
    let tasks = admin.get("/image/v2/tasks?status=failure").await.json();
    assert_eq!(tasks["tasks"].as_array().unwrap().len(), 1);
    let task = format!("/image{}", tasks["tasks"][0]["self"].as_str().unwrap());
    assert_eq!(admin.get(&task).await.json()["status"], "failure");
    assert_eq!(ann.get(&task).await.status, 403);
    assert_eq!(admin.get("/image/v2/tasks/none").await.status, 404);
    let new = json!({"type": "import", "input": {"import_from": URI, "import_from_format": "raw",
        "image_properties": {"name": "n", "visibility": "public"}}});
    assert_eq!(ann.json(Method::POST, "/image/v2/tasks", &new).await.status, 403);
    let made = admin.json(Method::POST, "/image/v2/tasks", &new).await;
    assert_eq!(made.status, 201);
    let at = format!("/image/v2/tasks/{}", made.json()["id"].as_str().unwrap());
    while admin.get(&at).await.json()["status"] == "processing" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let done = admin.get(&at).await.json();
    let image = format!(
        "/image/v2/images/{}",
        done["result"]["image_id"].as_str().unwrap()
    );
    assert_eq!(ann.get(&image).await.json()["name"], "n");
    let wrong = json!({"type": "export", "input": {"import_from": URI, "import_from_format": "raw"}});
    assert_eq!(
        admin.json(Method::POST, "/image/v2/tasks", &wrong).await.status,
        400
    );
}

#[tokio::test]
async fn there_is_one_store_and_what_a_project_uses_of_it() {
    let test = cloud().await;
    let (admin, ann) = (Client::admin(&test).await, member(&test).await);
    assert_eq!(
        ann.get("/image/v2/info/stores").await.json()["stores"][0]["id"],
        "local"
    );
    assert_eq!(ann.get("/image/v2/info/stores/detail").await.status, 403);
    assert_eq!(
        admin.get("/image/v2/info/stores/detail").await.json()["stores"][0]["type"],
        "file"
    );
    let image = json!({"name": "i", "disk_format": "raw", "container_format": "bare"});
    let id = ann.json(Method::POST, "/image/v2/images", &image).await.json()["id"].clone();
    let id = id.as_str().unwrap();
    let in_store = |store: &str| format!("/image/v2/stores/{store}/{id}");
    let delete = async |path: String| ann.send(Method::DELETE, &path, &[], Body::empty()).await.status;
    assert_eq!(delete(in_store("local")).await, 404);
    let file = format!("/image/v2/images/{id}/file");
    let bytes = vec![0_u8; 1 << 20];
    let headers = [("content-type", "application/octet-stream")];
    assert_eq!(ann.send(Method::PUT, &file, &headers, bytes).await.status, 204);
    assert_eq!(delete(in_store("local")).await, 403);
    assert_eq!(delete(in_store("else")).await, 404);
    let usage = ann.get("/image/v2/info/usage").await.json();
    assert_eq!(usage["usage"]["image_size_total"]["usage"], 1);
    assert_eq!(usage["usage"]["image_count_total"]["usage"], 1);
    assert_eq!(usage["usage"]["image_count_uploading"]["usage"], 0);
}

#[tokio::test]
async fn metadata_definitions_are_made_by_administrators_and_read_by_all() {
    let test = cloud().await;
    let (admin, ann) = (Client::admin(&test).await, member(&test).await);
    let at = "/image/v2/metadefs/namespaces";
    let new = json!({"namespace": "ns", "visibility": "public",
        "resource_type_associations": [{"name": "OS::Nova::Flavor", "prefix": "hw:"}]});
    assert_eq!(ann.json(Method::POST, at, &new).await.status, 403);
    assert_eq!(admin.json(Method::POST, at, &new).await.status, 201);
    assert_eq!(admin.json(Method::POST, at, &new).await.status, 409);
    assert_eq!(
        admin
            .json(Method::POST, at, &json!({"namespace": 7}))
            .await
            .status,
        400
    );
    let ns = format!("{at}/ns");
    for (kind, name, body) in [
        ("objects", "o", json!({"name": "o", "required": []})),
        (
            "properties",
            "p",
            json!({"name": "p", "title": "P", "type": "string"}),
        ),
        ("resource_types", "T", json!({"name": "T"})),
    ] {
        let all = format!("{ns}/{kind}");
        assert_eq!(ann.json(Method::POST, &all, &body).await.status, 403, "{kind}");
        assert_eq!(admin.json(Method::POST, &all, &body).await.status, 201, "{kind}");
        assert_eq!(ann.get(&all).await.status, 200);
        if kind != "resource_types" {
            let one = format!("{all}/{name}");
            assert_eq!(ann.get(&one).await.json()["name"], name);
            assert_eq!(ann.json(Method::PUT, &one, &body).await.status, 403);
            assert_eq!(admin.json(Method::PUT, &one, &body).await.status, 200);
        }
    }
    let tag = format!("{ns}/tags/t");
    assert_eq!(ann.send(Method::POST, &tag, &[], Body::empty()).await.status, 403);
    assert_eq!(
        admin.send(Method::POST, &tag, &[], Body::empty()).await.status,
        201
    );
    let tags = json!({"tags": [{"name": "a"}, {"name": "b"}]});
    assert_eq!(
        admin
            .json(Method::POST, &format!("{ns}/tags"), &tags)
            .await
            .status,
        201
    );
    let whole = ann
        .get(&format!("{ns}?resource_type=OS::Nova::Flavor"))
        .await
        .json();
    assert_eq!(whole["properties"]["hw:p"]["name"], "hw:p");
    assert_eq!(
        whole["tags"].as_array().unwrap().len(),
        2,
        "in the place of the first"
    );
    assert_eq!(whole["objects"][0]["name"], "o");
    assert_eq!(ann.get(&format!("{ns}?resource_type=Other")).await.status, 404);
    assert_eq!(ann.get(&format!("{ns}/colours")).await.status, 404);
    assert_eq!(ann.get(&format!("{ns}/objects?limit=1")).await.status, 200);
    let listed = ann
        .get(&format!("{at}?resource_types=T&sort_key=namespace"))
        .await
        .json();
    assert_eq!(listed["namespaces"][0]["namespace"], "ns");
    assert!(
        ann.get(&format!("{at}?resource_types=U")).await.json()["namespaces"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    let types = ann.get("/image/v2/metadefs/resource_types").await.json();
    assert!(
        types["resource_types"]
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one["name"] == "T")
    );
    for kind in ["objects", "properties", "tags"] {
        let all = format!("{ns}/{kind}");
        assert_eq!(
            ann.send(Method::DELETE, &all, &[], Body::empty()).await.status,
            403
        );
        assert_eq!(
            admin.send(Method::DELETE, &all, &[], Body::empty()).await.status,
            204
        );
    }
    assert_eq!(
        ann.send(Method::DELETE, &ns, &[], Body::empty()).await.status,
        403
    );
    assert_eq!(
        admin.send(Method::DELETE, &ns, &[], Body::empty()).await.status,
        204
    );
    assert_eq!(ann.get(&ns).await.status, 404);
    for schema in [
        "namespace",
        "namespaces",
        "object",
        "objects",
        "property",
        "properties",
        "tag",
        "tags",
    ] {
        let schema_of = ann
            .get(&format!("/image/v2/schemas/metadefs/{schema}"))
            .await
            .json();
        assert_eq!(schema_of["name"], schema);
    }
    assert_eq!(ann.get("/image/v2/schemas/metadefs/else").await.status, 404);
    assert_eq!(ann.get("/image/v2/schemas/task").await.json()["name"], "task");
}
