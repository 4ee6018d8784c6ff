"""AMQP 0-9-1: confirms, large messages, acknowledgements, a consumer that waits. Usage: amqp_client.py HOST PORT SECONDS"""

import sys
import threading
import time

import pika

settings = pika.ConnectionParameters(host=sys.argv[1], port=int(sys.argv[2]), heartbeat=2)
bodies = [bytes([n % 251]) * size for n, size in enumerate([0, 1, 100, 4096, 200_000, 3_000_000] * 5)]

consumer = pika.BlockingConnection(settings)
taking = consumer.channel()
taking.queue_declare("heddle")
taking.basic_qos(prefetch_count=3)


def publish():
    # Nothing is there for so long, which may be longer than two heartbeats.
    time.sleep(int(sys.argv[3]))
    connection = pika.BlockingConnection(settings)
    channel = connection.channel()
    channel.confirm_delivery()
    for number, body in enumerate(bodies):
        properties = pika.BasicProperties(message_id=str(number))
        channel.basic_publish("", "heddle", body, properties, mandatory=True)
    connection.close()


publisher = threading.Thread(target=publish)
publisher.start()
for number, (method, properties, body) in enumerate(taking.consume("heddle", inactivity_timeout=30)):
    assert method is not None, f"only {number} of {len(bodies)} messages"
    assert (properties.message_id, body) == (str(number), bodies[number]), number
    taking.basic_ack(method.delivery_tag)
    if number + 1 == len(bodies):
        break
publisher.join()
taking.cancel()
assert taking.queue_delete("heddle").method.message_count == 0
consumer.close()
print("all well")
