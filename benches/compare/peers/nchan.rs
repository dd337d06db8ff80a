//! Nchan: nginx with Debian's module.
//!
//! One worker. It keeps the newest message of a channel, as the hub keeps the newest version.

use std::fs;
use std::path::Path;

use super::{RunningServer, StartContext, by_path, by_post};
use crate::process::{Process, free_address, is_installed};

const MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

pub(super) fn missing() -> Option<String> {
    let is_complete = is_installed("nginx") && Path::new(MODULE).is_file();
    (!is_complete).then(|| "apt-get install nginx-light libnginx-mod-nchan".to_owned())
}

pub(super) fn start(context: &StartContext<'_>) -> anyhow::Result<RunningServer> {
    let address = free_address()?;
    let dir = context.dir.display();
    // By default, a worker of root switches to a user that cannot write to the directory.
    let user = if fs::metadata("/proc/self").is_ok_and(|process| is_root(&process)) {
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
    let path = context.dir.join("nginx.conf");
    fs::write(&path, config)?;
    let command = [
        "nginx",
        "-p",
        &dir.to_string(),
        "-c",
        &path.to_string_lossy(),
    ];
    let mut process = Process::start(&command, context.cores, context.dir, "nginx")?;
    process.wait_until_listening(address)?;
    Ok(RunningServer {
        processes: vec![process],
        endpoint: by_path(address, context.channels),
        publish_address: address,
        publish: by_post(&context.template),
    })
}

fn is_root(process: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    process.uid() == 0
}
