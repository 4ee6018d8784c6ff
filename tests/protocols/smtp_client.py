"""Sends mail. Usage: smtp_client.py HOST PORT"""

import smtplib
import sys

MAIL = "Subject: a thread through the heddle\r\n\r\n" + ("x" * 70 + "\r\n") * 1000

with smtplib.SMTP(sys.argv[1], int(sys.argv[2]), timeout=10) as server:
    for _ in range(3):
        server.sendmail("a@example.org", ["b@example.org"], MAIL)
    assert server.noop()[0] == 250
print("all well")
