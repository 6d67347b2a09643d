"""Change how many replicas a service has; used by `scale-service/default` in `prefect.yaml`."""

from prefect_dstack import scale_service

if __name__ == "__main__":
    scale_service.serve(name="default")
