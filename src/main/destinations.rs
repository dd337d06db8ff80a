//! The command `destinations`: lists, tests, enables and disables destinations.

use anyhow::bail;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::Value;

use crate::hub_api::{self, HubArgs};
use crate::print;
use crate::table::{cell, table};

#[derive(Args)]
#[command(after_help = hub_api::HELP)]
pub(crate) struct DestinationsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the destinations and their state
    List(ListArgs),
    /// Send a test to a destination; for `email`, log in to the mail server
    Test(DestinationArgs),
    /// Enable a destination, or end its pause; what was held is sent
    Enable(DestinationArgs),
    /// Disable a destination; deliveries are held until it is enabled
    Disable(DestinationArgs),
}

#[derive(Args)]
#[command(after_help = hub_api::HELP)]
struct ListArgs {
    #[command(flatten)]
    hub: HubArgs,
}

#[derive(Args)]
#[command(after_help = hub_api::HELP)]
struct DestinationArgs {
    #[command(flatten)]
    hub: HubArgs,
    /// Name of the destination
    name: String,
}

pub(crate) async fn run(args: DestinationsArgs) -> anyhow::Result<()> {
    match args.action {
        Action::List(ListArgs { hub }) => {
            let all = hub
                .connect()?
                .send(Method::GET, &["destinations"], &[])
                .await?;
            if hub.json {
                return print(&format!("{all:#}"));
            }
            print_rows(all["destinations"].as_array().into_iter().flatten())
        }
        Action::Test(args) => {
            let result = post(&args, "test").await?;
            if args.hub.json {
                print(&format!("{result:#}"))?;
            }
            if result["delivered"] != true {
                bail!("{}: test failed: {}", args.name, cell(&result["error"]));
            }
            if args.hub.json {
                return Ok(());
            }
            let time = cell(&result["duration_ms"]);
            print(&format!("{}: test succeeded in {time} ms", args.name))
        }
        Action::Enable(args) => {
            let destination = post(&args, "enable").await?;
            print_destination(&args.hub, &destination)
        }
        Action::Disable(args) => {
            let destination = post(&args, "disable").await?;
            print_destination(&args.hub, &destination)
        }
    }
}

async fn post(args: &DestinationArgs, action: &str) -> anyhow::Result<Value> {
    let path = ["destinations", &args.name, action];
    args.hub.connect()?.send(Method::POST, &path, &[]).await
}

fn print_destination(hub: &HubArgs, destination: &Value) -> anyhow::Result<()> {
    if hub.json {
        print(&format!("{destination:#}"))
    } else {
        print_rows([destination])
    }
}

fn print_rows<'v>(destinations: impl IntoIterator<Item = &'v Value>) -> anyhow::Result<()> {
    let fields = [
        ("NAME", "name"),
        ("KIND", "kind"),
        ("STATE", "state"),
        ("WAITING", "waiting"),
        ("FAILURES", "consecutive_failures"),
        ("LAST SUCCESS", "last_success_at"),
        ("ADDRESS", "address"),
        ("LAST ERROR", "last_error"),
    ];
    let mut rows = vec![fields.map(|(heading, _)| heading.to_owned()).to_vec()];
    let destinations = destinations.into_iter();
    rows.extend(destinations.map(|it| fields.map(|(_, field)| cell(&it[field])).to_vec()));
    print(&table(&rows))
}
