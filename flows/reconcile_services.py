"""Repair what differs from the records; used by `reconcile-services/default` in `prefect.yaml`."""

from prefect_dstack.flows.reconcile import reconcile_services

if __name__ == "__main__":
    reconcile_services.serve(name="default", interval=300)
