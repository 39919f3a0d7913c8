"""RabbitMQ as the broker. Needs the extra `rabbitmq`."""

from sagapost.adapters.rabbitmq.broker import RabbitMQBroker

__all__ = ["RabbitMQBroker"]
