"""Deploy a service; used by the deployment `deploy-service/default` in `prefect.yaml`."""

from prefect_dstack.flows.deploy import deploy_service

if __name__ == "__main__":
    deploy_service.serve(name="default")
