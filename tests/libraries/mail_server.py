"""A mail server for tests.

Prints its port, and then each mail that it accepts as a line of JSON: sender, recipients and content.

usage: mail_server.py [--port PORT] [--user USER --password PASSWORD] [--certificate FILE --key FILE --tls implicit|starttls]
                 [--reply COMMAND=REPLY]...

`--reply RCPT=550 5.1.1 unknown user` replaces the reply to a command: MAIL, RCPT or DATA.
"""

import argparse
import asyncio
import json
import ssl

from aiosmtpd.smtp import SMTP, AuthResult


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--user")
    parser.add_argument("--password")
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    parser.add_argument("--tls", choices=["implicit", "starttls"])
    parser.add_argument("--reply", action="append", default=[])
    return parser.parse_args()


class Handler:
    def __init__(self, replies):
        self.replies = replies

    async def handle_MAIL(self, server, session, envelope, address, options):
        if "MAIL" not in self.replies:
            envelope.mail_from = address
            envelope.mail_options.extend(options)
        return self.replies.get("MAIL", "250 OK")

    async def handle_RCPT(self, server, session, envelope, address, options):
        if "RCPT" not in self.replies:
            envelope.rcpt_tos.append(address)
        return self.replies.get("RCPT", "250 OK")

    async def handle_DATA(self, server, session, envelope):
        if "DATA" not in self.replies:
            mail = {
                "from": envelope.mail_from,
                "to": envelope.rcpt_tos,
                "content": envelope.content.decode("utf-8", "surrogateescape"),
                "is_encrypted": session.ssl is not None or server.transport.get_extra_info("sslcontext") is not None,
                "user": session.auth_data,
            }
            print(json.dumps(mail), flush=True)
        return self.replies.get("DATA", "250 OK")


async def main():
    arguments = parse_arguments()
    handler = Handler(dict(reply.split("=", 1) for reply in arguments.reply))
    context = None
    if arguments.tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(arguments.certificate, arguments.key)

    def authenticate(server, session, envelope, mechanism, login):
        user = login.login.decode()
        is_valid = (user, login.password.decode()) == (arguments.user, arguments.password)
        # `handled=False` makes the library send 535. Otherwise it sends nothing.
        return AuthResult(success=is_valid, handled=False, auth_data=user)

    def create():
        return SMTP(
            handler,
            tls_context=context if arguments.tls == "starttls" else None,
            require_starttls=arguments.tls == "starttls",
            authenticator=authenticate if arguments.user else None,
            auth_required=arguments.user is not None,
            auth_require_tls=False,
            timeout=30,
        )

    loop = asyncio.get_running_loop()
    listener = await loop.create_server(
        create, "127.0.0.1", arguments.port, ssl=context if arguments.tls == "implicit" else None
    )
    print(listener.sockets[0].getsockname()[1], flush=True)
    await listener.serve_forever()


asyncio.run(main())
