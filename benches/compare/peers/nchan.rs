//! Nchan: nginx with Debian's module.
//!
//! Invariant: one worker; the newest message of a channel is kept, as the hub keeps the newest version.

use std::fs;
use std::path::Path;

use super::{Ground, Stand, by_path, by_post};
use crate::process::{Process, free_address, is_there};

const MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

pub(super) fn missing() -> Option<String> {
    let is_whole = is_there("nginx") && Path::new(MODULE).is_file();
    (!is_whole).then(|| "apt-get install nginx-light libnginx-mod-nchan".to_owned())
}

pub(super) fn start(ground: &Ground<'_>) -> anyhow::Result<Stand> {
    let address = free_address()?;
    let dir = ground.dir.display();
    // Without this word, a worker of root's goes on as a user who may not write here.
    let user = if fs::metadata("/proc/self").is_ok_and(|own| is_root(&own)) {
        "user root;"
    } else {
        ""
    };
    let config = format!(
        "load_module {MODULE};
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {dir}/nginx.pid;
error_log {dir}/nginx-error.log error;
events {{ worker_connections 19900; }}
http {{
  access_log off;
  tcp_nodelay on;
  client_body_temp_path {dir}/nginx-body;
  proxy_temp_path {dir}/nginx-proxy;
  fastcgi_temp_path {dir}/nginx-fastcgi;
  uwsgi_temp_path {dir}/nginx-uwsgi;
  scgi_temp_path {dir}/nginx-scgi;
  keepalive_requests 1000000;
  nchan_max_reserved_memory 256M;
  server {{
    listen {address} backlog=4096;
    location ~ ^/ws/(\\w+)$ {{
      nchan_subscriber websocket;
      nchan_channel_id $1;
      nchan_subscriber_first_message newest;
    }}
    location ~ ^/publish/(\\w+)$ {{
      nchan_publisher;
      nchan_channel_id $1;
      nchan_message_buffer_length 1;
    }}
  }}
}}
"
    );
    let path = ground.dir.join("nginx.conf");
    fs::write(&path, config)?;
    let command = [
        "nginx",
        "-p",
        &dir.to_string(),
        "-c",
        &path.to_string_lossy(),
    ];
    let mut process = Process::start(&command, ground.cores, ground.dir, "nginx")?;
    process.listens(address)?;
    Ok(Stand {
        processes: vec![process],
        door: by_path(address, ground.channels),
        publish_at: address,
        publish: by_post(&ground.template),
    })
}

fn is_root(own: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    own.uid() == 0
}
