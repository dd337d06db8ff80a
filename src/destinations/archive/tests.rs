//! Copies to a folder, and errors of the configuration.

use std::fs;
use std::path::Path as FilePath;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::Attribute;
use serde_json::json;
use tempfile::TempDir;

use super::content::Content;
use super::*;
use crate::config::Config;
use crate::job::{InlineContent, NewJob, Output};
use crate::outbox::DeliveryState;

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";
const PNG_SHA256: &str = "02a3e298f1533f62558c58e4c70edcab9af5a50d62d925fd5390942020fb0fb8";

fn settings(url: &str) -> ArchiveConfig {
    ArchiveConfig {
        url: Some(url.parse().unwrap()),
        ..Config::defaults().archive
    }
}

fn folder_archive(folder: &TempDir) -> Archive {
    let config = ArchiveConfig {
        max_bytes: 20 << 20,
        ..settings(&format!("file://{}/outputs", folder.path().display()))
    };
    Archive::open(&config).unwrap().unwrap()
}

fn job(output: serde_json::Value) -> Job {
    let new = NewJob {
        owner: "auth0|ada".to_owned(),
        provider: None,
        provider_task_id: None,
        model: None,
        metadata: serde_json::Map::new(),
        request: None,
        deadline: Duration::from_secs(60),
    };
    let output: Output = serde_json::from_value(output).unwrap();
    Job {
        outputs: vec![output],
        ..Job::new(new, Time::now())
    }
}

fn image() -> Job {
    job(json!({ "type": "image", "url": "" }))
}

fn content(content_type: &str, bytes: impl Into<Bytes>) -> Content {
    Content::inline(InlineContent {
        content_type: content_type.to_owned(),
        bytes: bytes.into(),
    })
}

/// Returns the paths of all files below a folder.
fn files(folder: &FilePath) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test]
async fn copy_is_stored_under_its_key_with_size_and_checksum() {
    let (folder, job) = (tempfile::tempdir().unwrap(), image());
    let archive = folder_archive(&folder);
    let copy = archive.copy(&job, 0, content("", PNG)).await.unwrap();
    assert_eq!(copy.key, format!("auth0-ada/{}/0.png", job.id));
    assert_eq!((copy.bytes, copy.content_type.as_str()), (16, "image/png"));
    assert_eq!(copy.sha256, PNG_SHA256);
    let path = folder.path().join("outputs").join(&copy.key);
    assert_eq!(fs::read(&path).unwrap(), PNG);

    // A repeated copy replaces the first one.
    let newer = [PNG, b"more"].concat();
    let second = archive
        .copy(&job, 0, content("", newer.clone()))
        .await
        .unwrap();
    assert_eq!(second.key, copy.key);
    assert_eq!(fs::read(&path).unwrap(), newer);
    assert_eq!(files(folder.path()).len(), 1);
}

#[tokio::test]
async fn content_of_several_parts_is_complete_and_can_be_read_in_parts() {
    let (folder, job) = (tempfile::tempdir().unwrap(), image());
    let archive = folder_archive(&folder);
    let bytes: Vec<u8> = (0..18_u32 << 20).map(|n| (n >> 3) as u8).collect();
    let copy = archive
        .copy(&job, 0, content("image/png", bytes.clone()))
        .await
        .unwrap();
    assert_eq!(copy.bytes, bytes.len() as u64);
    for part in [0..copy.bytes, 5..9, 17 << 20..copy.bytes, 3..3] {
        let read = archive.read(&copy, part.clone()).await.unwrap();
        let chunks: Vec<Bytes> = read.try_collect().await.unwrap();
        let expected = &bytes[part.start as usize..part.end as usize];
        assert!(chunks.concat() == expected, "{part:?}");
    }
    let access = archive.read_access(&copy, false).await;
    assert_eq!(access, Ok(ReadAccess::Stream));
}

#[tokio::test]
async fn rejected_content_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder_archive(&folder);
    let video = job(json!({ "type": "video", "url": "" }));
    let too_large = vec![7; (20 << 20) + 1];
    let mut undeclared = content("video/mp4", too_large.clone());
    undeclared.length = None;
    let mut short = content("video/mp4", PNG);
    short.length = Some(100);
    let source = |error: &str| CopyError::Source(error.to_owned());
    let limit = "the output is larger than archive.max_bytes (20971520)";
    let limit = CopyError::Rejected(limit.to_owned());
    for (content, expected) in [
        (content("video/mp4", too_large), limit.clone()),
        (undeclared, limit),
        (
            short,
            source("the source ended before its content was complete"),
        ),
        (content("video/mp4", ""), source("the source is empty")),
        (
            content("text/html", "<html>expired</html>"),
            source("the source returned HTML instead of media"),
        ),
    ] {
        let copied = archive.copy(&video, 0, content).await;
        assert_eq!(copied.err(), Some(expected));
    }
    let is_empty = || files(folder.path()).is_empty();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !is_empty() && tokio::time::Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    assert!(is_empty(), "{:?}", files(folder.path()));
}

#[test]
fn objects_have_headers_and_marks() {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = folder_archive(&folder);
    let url = "https://provider.example.com/marked";
    let job = job(json!({ "type": "image", "url": "", "nsfw": true, "watermark_url": url }));
    let attributes = archive.attributes(&job, 0, "image/svg+xml");
    let value = |name: Attribute| attributes.get(&name).map(|value| value.to_string());
    let metadata = |name: &'static str| value(Attribute::Metadata(name.into()));
    let disposition = format!("attachment; filename=\"{}-0.svg\"", job.id);
    assert_eq!(value(Attribute::ContentType).unwrap(), "image/svg+xml");
    assert_eq!(value(Attribute::ContentDisposition), Some(disposition));
    let cache = value(Attribute::CacheControl).unwrap();
    assert!(cache.starts_with("private,"), "{cache}");
    assert_eq!(metadata("job"), Some(job.id.to_string()));
    assert_eq!(metadata("output").unwrap(), "0");
    assert_eq!(metadata("nsfw").unwrap(), "true");
    assert_eq!(metadata("watermark").unwrap(), "false");
    let keep: Time = metadata("keepuntil").unwrap().parse().unwrap();
    assert!(keep > Time::now() + Duration::from_secs(29 * 24 * 60 * 60));

    archive.public_url = Some("https://cdn.example.com/a/".parse().unwrap());
    let attributes = archive.attributes(&job, 0, "video/mp4");
    let value = |name: Attribute| attributes.get(&name).map(|value| value.to_string());
    assert!(
        value(Attribute::CacheControl)
            .unwrap()
            .starts_with("public,")
    );
    assert!(
        value(Attribute::ContentDisposition)
            .unwrap()
            .starts_with("inline;")
    );
}

#[tokio::test]
async fn public_url_is_followed_by_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = folder_archive(&folder);
    let copy = archive.copy(&image(), 0, content("", PNG)).await.unwrap();
    archive.public_url = Some("https://cdn.example.com/a/".parse().unwrap());
    let access = archive.read_access(&copy, false).await.unwrap();
    let expected = format!("https://cdn.example.com/a/{}", copy.key);
    assert_eq!(access, ReadAccess::Redirect(expected.parse().unwrap()));
}

#[tokio::test]
async fn copies_of_another_archive_are_not_found() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (first, second) = (folder_archive(&folders[0]), folder_archive(&folders[1]));
    let job = image();
    let copy = first.copy(&job, 0, content("", PNG)).await.unwrap();
    let new = Archive::deliveries(&job).next().unwrap();
    let mut delivery = Delivery::new(&new, &job, "{}");
    assert_eq!(delivery.id, Archive::delivery_id(&job, 0));
    assert_eq!(Archive::output_of(&delivery.id), Some(0));
    assert_eq!(first.archived(&delivery), None);
    let delivered = DeliveryState::Delivered { at: Time::now() };
    delivery.progress = delivery.progress.next(delivered, None);
    delivery.progress.result = serde_json::to_value(&copy).unwrap();
    assert_eq!(first.archived(&delivery), Some(copy));
    assert_eq!(second.archived(&delivery), None);
}

#[tokio::test]
async fn check_reports_a_folder_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(folder_archive(&folder).check().await, Ok(()));
    assert_eq!(files(folder.path()), [""; 0]);
    // A file in place of the folder fails for every user, also for root.
    fs::write(folder.path().join("file"), "").unwrap();
    let url = format!("file://{}/file/outputs", folder.path().display());
    let archive = Archive::open(&settings(&url)).unwrap().unwrap();
    let error = archive.check().await.unwrap_err();
    assert_eq!(error.key, "archive.url");
    assert!(
        error.message.contains("Not a directory"),
        "{}",
        error.message
    );
}

#[test]
fn invalid_settings_are_reported_by_their_key() {
    assert!(
        Archive::open(&Config::defaults().archive)
            .unwrap()
            .is_none()
    );
    let config = ArchiveConfig {
        key: "{{ job.owner }}".to_owned(),
        ..settings("file:///var/lib/outputs")
    };
    let errors = Archive::open(&config).err().unwrap();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].key, "archive.key");
}
